"""DeepSeek-V3 and V3.2: the names and shapes of the published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepseek_headers import A1_INDEXER, FAMILY, R1, V32, header_specs, published

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Role, expert_matrices


def test_r1_has_exactly_the_published_tensors() -> None:
    """91,991 entries with the scales; they follow from the table, and so does what llama.cpp counts:

    1,025 tensors without the MTP layer, each layer's experts in three (ggml-org/llama.cpp issue 10981).
    """
    table, specs = published(), header_specs(R1)
    weights = {name: spec.shape for name, spec in specs.items() if not name.endswith("_scale_inv")}
    scales = {name: spec.shape for name, spec in specs.items() if name.endswith("_scale_inv")}
    assert weights == {name: shape for name, (shape, _) in table.items()}
    assert scales == {f"{name}_scale_inv": scale for name, (_, scale) in table.items() if scale}
    assert len(specs) == 91_991
    assert len(scales) == 3 * 256 * 59 + 5 * 62 + 3 * 3 + 3 * 59
    without_mtp = [name for name in weights if ".layers.61." not in name]
    experts = [name for name in without_mtp if ".experts." in name]
    assert len(without_mtp) - len(experts) + 3 * 58 == 1025
    assert len(experts) == 44_544


def test_every_tensor_of_r1_gets_a_role() -> None:
    items = take_inventory(FAMILY, FAMILY.dimensions(R1), header_specs(R1))
    assert sum(item.expected.role is Role.EXPERT for item in items.values()) == 59 * 768
    total = sum(item.span_bytes for item in items.values())
    assert 685e9 < total < 692e9  # 671 B weights and the MTP layer, one byte each; 16 bits outside
    assert items["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].tensors[1].shape == (5, 56)


def test_transformers_saves_the_names_we_expect(golden: Path) -> None:
    saved = json.loads((golden / "transformers_names.json").read_text())["deepseek_v3"]
    config = {"model_type": "deepseek_v3", **saved["config_args"]}
    expected = FAMILY.expected(FAMILY.dimensions(config))
    assert {name: list(item.shape) for name, item in expected.items()} == {n: s for n, (_, s) in saved["saved"].items()}


def test_the_miniature_is_whole(miniature: Path) -> None:
    with CheckpointReader(miniature) as reader:
        items = take_inventory(FAMILY, FAMILY.dimensions(reader.config), reader.specs)
        assert sum(len(item.tensors) for item in items.values()) == len(reader.specs)
        assert {item.format.name for item in items.values() if item.format} == {"deepseek_fp8", "bf16"}


def test_expert_names() -> None:
    assert expert_matrices(FAMILY, FAMILY.dimensions(R1), 3, 17) == tuple(
        f"model.layers.3.mlp.experts.17.{p}_proj.weight" for p in ("gate", "up", "down")
    )


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_the_format_is_what_the_headers_say_never_the_config(toy_config: dict[str, Any], dtype: str) -> None:
    lying = toy_config | {"quantization_config": {"quant_method": "w4afp8", "weight_block_size": [7, 7]}}
    items = take_inventory(FAMILY, FAMILY.dimensions(lying), header_specs(toy_config, dtype))
    found = {item.format.name for item in items.values() if item.format and item.expected.role is Role.EXPERT}
    assert found == {"deepseek_fp8" if dtype == "fp8" else "bf16"}


@pytest.mark.parametrize("field", ["num_nextn_predict_layers", "q_lora_rank", "tie_word_embeddings"])
def test_optional_parts_follow_the_config(toy_config: dict[str, Any], field: str) -> None:
    without = toy_config | {
        field: {"num_nextn_predict_layers": 0, "q_lora_rank": None, "tie_word_embeddings": True}[field]
    }
    names, all_names = header_specs(without), header_specs(toy_config)
    gone, new = {n for n in all_names if n not in names}, {n for n in names if n not in all_names}
    if field == "num_nextn_predict_layers":
        assert gone and all(".layers.3." in n for n in gone) and not new
    elif field == "tie_word_embeddings":
        assert gone == {"lm_head.weight"}
    else:
        assert {n.split(".")[-2] for n in gone} == {"q_a_proj", "q_a_layernorm", "q_b_proj"}
        assert {n.split(".")[-2] for n in new} == {"q_proj"}


@pytest.mark.parametrize("name", families.names())
def test_a_family_is_what_its_file_says(name: str) -> None:
    family = families.get(name)
    assert family.name == name
    assert family.model_types
    for model_type in family.model_types:
        assert families.of({"model_type": model_type}) is family


def test_yarn_is_read_from_both_spellings() -> None:
    old = FAMILY.dimensions(R1).rope
    new = {k: v for k, v in R1.items() if k not in ("rope_scaling", "rope_theta")}
    scaling = dict(R1["rope_scaling"], rope_theta=10000.0)  # type: ignore[call-overload]
    scaling["rope_type"] = scaling.pop("type")
    assert FAMILY.dimensions(new | {"rope_parameters": scaling}).rope == old
    assert (old.factor, old.original_positions, old.mscale_all_dim) == (40.0, 4096, 1.0)


def test_a_config_without_mtp_promises_none(toy_config: dict[str, Any]) -> None:
    without = FAMILY.without_mtp(toy_config)
    assert FAMILY.dimensions(without).all_layers == 3
    assert toy_config["num_nextn_predict_layers"] == 1


def test_v32_adds_its_indexer_to_every_layer() -> None:
    before, after = header_specs(R1), header_specs(V32)
    added = {name: spec.shape for name, spec in after.items() if name not in before}
    expected = {}
    for layer in range(62):
        for name, (shape, scale) in A1_INDEXER.items():
            expected[f"model.layers.{layer}.self_attn.indexer.{name}"] = shape
            if scale:
                expected[f"model.layers.{layer}.self_attn.indexer.{name}_scale_inv"] = scale
    assert added == expected and not set(before) - set(after)
    weights_proj = "model.layers.0.self_attn.indexer.weights_proj.weight"
    assert after[weights_proj].dtype == "BF16", "16 bits also where the rest is FP8"


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_v32s_weights_proj_is_read_as_transformers_keeps_it_too(dtype: str) -> None:
    small = V32 | {"num_hidden_layers": 4, "n_routed_experts": 32}
    name = "model.layers.0.self_attn.indexer.weights_proj.weight"
    specs = header_specs(small) | {name: TensorSpec(name, dtype, (64, 7168))}
    assert take_inventory(FAMILY, FAMILY.dimensions(small), specs)[name].expected.role is Role.INDEXER


def test_transformers_saves_v32s_names(golden: Path) -> None:
    saved = json.loads((golden / "transformers_names.json").read_text())["deepseek_v32"]
    expected = FAMILY.expected(FAMILY.dimensions({"model_type": "deepseek_v32", **saved["config_args"]}))
    assert {name: list(item.shape) for name, item in expected.items()} == {n: s for n, (_, s) in saved["saved"].items()}
