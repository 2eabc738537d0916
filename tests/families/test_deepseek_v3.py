"""DeepSeek-V3: the names and shapes of the published checkpoints, and every lie a config or an index can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Role, expert_matrices
from w4afp8.synthetic import specs_of, style_of

FAMILY = families.get("deepseek_v3")

# deepseek-ai/DeepSeek-V3 and DeepSeek-R1, the fields that decide shapes (formats: A1).
R1 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu", "moe_layer_freq": 1,
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "max_position_embeddings": 163840, "tie_word_embeddings": False,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
}  # fmt: skip

# The table of formats A1: name below `model.layers.L.`, shape, shape of its `weight_scale_inv`.
A1 = {
    "self_attn.q_a_proj.weight": ((1536, 7168), (12, 56)),
    "self_attn.q_b_proj.weight": ((24576, 1536), (192, 12)),
    "self_attn.kv_a_proj_with_mqa.weight": ((576, 7168), (5, 56)),
    "self_attn.kv_b_proj.weight": ((32768, 512), (256, 4)),
    "self_attn.o_proj.weight": ((7168, 16384), (56, 128)),
    "self_attn.q_a_layernorm.weight": ((1536,), None),
    "self_attn.kv_a_layernorm.weight": ((512,), None),
    "input_layernorm.weight": ((7168,), None),
    "post_attention_layernorm.weight": ((7168,), None),
}
A1_DENSE = {
    "mlp.gate_proj.weight": ((18432, 7168), (144, 56)),
    "mlp.up_proj.weight": ((18432, 7168), (144, 56)),
    "mlp.down_proj.weight": ((7168, 18432), (56, 144)),
}
A1_MOE = {
    "mlp.gate.weight": ((256, 7168), None),
    "mlp.gate.e_score_correction_bias": ((256,), None),
    "mlp.shared_experts.gate_proj.weight": ((2048, 7168), (16, 56)),
    "mlp.shared_experts.up_proj.weight": ((2048, 7168), (16, 56)),
    "mlp.shared_experts.down_proj.weight": ((7168, 2048), (56, 16)),
}
A1_EXPERT = {
    "gate_proj.weight": ((2048, 7168), (16, 56)),
    "up_proj.weight": ((2048, 7168), (16, 56)),
    "down_proj.weight": ((7168, 2048), (56, 16)),
}
A1_MTP = {
    "enorm.weight": ((7168,), None), "hnorm.weight": ((7168,), None), "eh_proj.weight": ((7168, 14336), None),
    "shared_head.norm.weight": ((7168,), None), "shared_head.head.weight": ((129280, 7168), None),
    "embed_tokens.weight": ((129280, 7168), None),
}  # fmt: skip
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]


def published() -> Shapes:
    """Every tensor of R1 with the shape of its scale, written from the table alone."""
    found: Shapes = {
        "model.embed_tokens.weight": ((129280, 7168), None),
        "lm_head.weight": ((129280, 7168), None),
        "model.norm.weight": ((7168,), None),
    }
    for layer in range(62):
        own: Shapes = A1 | (A1_DENSE if layer < 3 else A1_MOE) | (A1_MTP if layer == 61 else {})
        found |= {f"model.layers.{layer}.{name}": shapes for name, shapes in own.items()}
        for expert in range(256 if layer >= 3 else 0):
            found |= {f"model.layers.{layer}.mlp.experts.{expert}.{n}": s for n, s in A1_EXPERT.items()}
    return found


def header_specs(config: dict[str, Any], dtype: str = "fp8") -> dict[str, TensorSpec]:
    """The headers of a sound checkpoint."""
    expected = FAMILY.expected(FAMILY.dimensions(config))
    return {spec.name: spec for item in expected.values() for spec in specs_of(item, style_of(dtype))}


def refuse(config: dict[str, Any], specs: dict[str, TensorSpec]) -> str:
    with pytest.raises(CheckpointError) as caught:
        take_inventory(FAMILY, FAMILY.dimensions(config), specs)
    return str(caught.value)


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


def test_a_missing_tensor_is_named_with_its_shape(toy_config: dict[str, Any]) -> None:
    specs = header_specs(toy_config)
    del specs["model.layers.1.post_attention_layernorm.weight"], specs["model.layers.2.mlp.experts.3.up_proj.weight"]
    said = refuse(toy_config, specs)
    assert "model.layers.1.post_attention_layernorm.weight is missing: expected a norm of [128]" in said
    assert "model.layers.2.mlp.experts.3.up_proj.weight is missing: expected a routed expert of [128, 128]" in said


def test_a_missing_scale_is_named(toy_config: dict[str, Any]) -> None:
    specs = header_specs(toy_config)
    del specs["model.layers.1.mlp.experts.0.down_proj.weight_scale_inv"]
    said = refuse(toy_config, specs)
    assert "model.layers.1.mlp.experts.0.down_proj.weight" in said
    assert "deepseek_fp8: .weight_scale_inv is missing" in said


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("model.norm.weight", "BF16", (129,)),
        ("model.norm.weight", "F8_E4M3", (128,)),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "I64", (4,)),
        ("model.layers.1.mlp.experts.0.up_proj.weight", "F8_E4M3", (128, 64)),
        ("model.layers.1.mlp.experts.0.up_proj.weight", "F8_E5M2", (128, 128)),
        ("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv", "F32", (2, 1)),
        ("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv", "F8_E8M0", (1, 1)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3", (128, 40)),
    ],
)
def test_a_wrong_shape_or_dtype_is_named(
    toy_config: dict[str, Any], name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    specs = header_specs(toy_config)
    specs[name] = TensorSpec(name, dtype, shape, "model-00003.safetensors")
    said = refuse(toy_config, specs)
    assert name.removesuffix("_scale_inv") in said
    assert str(list(shape)) in said or dtype in said
    assert "expected" in said


def test_a_tensor_without_a_role_is_named(toy_config: dict[str, Any]) -> None:
    specs = header_specs(toy_config)
    specs["model.layers.9.surprise.weight"] = TensorSpec("model.layers.9.surprise.weight", "BF16", (3,), "shard-7")
    said = refuse(toy_config, specs)
    assert "model.layers.9.surprise.weight (BF16 [3]) in shard-7 has no role in the family deepseek_v3" in said


def test_all_problems_are_listed_at_once_and_counted_when_many(toy_config: dict[str, Any]) -> None:
    specs = header_specs(toy_config)
    for name in [n for n in specs if ".layers.1." in n]:
        del specs[name]
    specs["odd"] = TensorSpec("odd", "BF16", (3,))
    said = refuse(toy_config, specs)
    assert said.count("\n  - ") <= 41
    specs = header_specs(toy_config)
    del specs["model.norm.weight"]
    specs["odd"] = TensorSpec("odd", "BF16", (3,))
    said = refuse(toy_config, specs)
    assert "2 problems" in said and "model.norm.weight" in said and "odd" in said


def test_extra_numbers_that_a_format_adds_must_be_there_and_be_numbers(toy_config: dict[str, Any]) -> None:
    wanted = {"x.input_scale": TensorSpec("x.input_scale", "F32", (1,))}
    d, specs = FAMILY.dimensions(toy_config), header_specs(toy_config)
    with pytest.raises(CheckpointError, match=r"x.input_scale is missing: expected F32 \[1\]"):
        take_inventory(FAMILY, d, specs, wanted)
    for dtype, shape in (("I32", (1,)), ("F32", (2,)), ("F32", (1, 1))):
        with pytest.raises(CheckpointError, match=r"x.input_scale \(.*\): expected F32 \[1\]"):
            take_inventory(FAMILY, d, specs | {"x.input_scale": TensorSpec("x.input_scale", dtype, shape)}, wanted)
    for dtype, shape in (("F32", (1,)), ("BF16", (1,)), ("BF16", ())):
        take_inventory(FAMILY, d, specs | {"x.input_scale": TensorSpec("x.input_scale", dtype, shape)}, wanted)


LIES: list[tuple[str, Any]] = [
    *[(field, value) for field in ("hidden_size", "num_hidden_layers", "n_routed_experts", "vocab_size")
      for value in (None, 0, -1, 2.0, "8", True, [])],
    ("q_lora_rank", 0), ("first_k_dense_replace", -1), ("num_nextn_predict_layers", -1), ("n_group", 0),
    ("n_group", 3), ("topk_group", 9), ("num_experts_per_tok", 5), ("n_shared_experts", 0),
    ("scoring_func", "softmax"), ("topk_method", "greedy"), ("hidden_act", "gelu"), ("moe_layer_freq", 2),
    ("attention_bias", True), ("rope_parameters", {"rope_type": "linear", "rope_theta": 1.0}),
    ("routed_scaling_factor", "x"), ("routed_scaling_factor", None), ("rms_norm_eps", None), ("rms_norm_eps", []),
    ("rope_parameters", "yarn"), ("rope_parameters", {"rope_theta": "x"}), ("rope_parameters", [1]),
    ("rope_parameters", {"rope_type": "yarn", "factor": "x"}), ("rope_parameters", {"rope_theta": -1.0}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4, "mscale": {}}),
    ("routed_scaling_factor", float("nan")), ("rms_norm_eps", float("inf")),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), LIES)
def test_a_config_that_lies_is_refused_by_the_fields_name(toy_config: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        FAMILY.dimensions(toy_config | {field: value})
    said = str(caught.value)
    words = {"n_group": "groups", "topk_group": "groups"}
    parts = value if field == "rope_parameters" and isinstance(value, dict) else [field]
    assert any(word in said for word in (*parts, words.get(field, field), "rope type"))
    assert said.startswith("config.json")


def test_everything_wrong_with_a_config_is_said_at_once(toy_config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="3 problems") as caught:
        FAMILY.dimensions(toy_config | {"hidden_size": "x", "scoring_func": "softmax", "vocab_size": None})
    assert all(word in str(caught.value) for word in ("hidden_size", "scoring_func", "vocab_size"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**12), ("n_routed_experts", 2**40), ("num_nextn_predict_layers", 10**9)],
)
def test_a_config_that_promises_more_than_any_memory_is_refused_quickly(
    toy_config: dict[str, Any], field: str, value: int
) -> None:
    specs = header_specs(toy_config)
    said = refuse(toy_config | {field: value}, specs)
    assert "promises" in said


def test_a_config_of_another_shape_names_the_tensors_that_disagree(toy_config: dict[str, Any]) -> None:
    specs = header_specs(toy_config)
    assert "model.layers.1.mlp.experts.0.gate_proj.weight" in refuse(toy_config | {"moe_intermediate_size": 256}, specs)
    assert "model.layers.1.mlp.experts.4.gate_proj.weight is missing" in refuse(
        toy_config | {"n_routed_experts": 8}, specs
    )
    fewer = refuse(toy_config | {"num_hidden_layers": 2}, specs)
    assert ".layers.2." in fewer and ".layers.3." in fewer


@pytest.mark.parametrize("model_type", [None, "llama", "deepseek_v2", "", 3, [], {}])
def test_a_family_nobody_knows_is_refused(model_type: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model_type is .*known: .*deepseek_v3"):
        families.of({"model_type": model_type})
    with pytest.raises(RecipeError, match=r"did you mean 'deepseek_v\d'"):
        families.get("deepseek_v2")


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


V32 = R1 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
# formats A1: what V3.2 adds to every layer below `self_attn.indexer.`
A1_INDEXER = {
    "wq_b.weight": ((8192, 1536), (64, 12)), "wk.weight": ((128, 7168), (1, 56)), "k_norm.weight": ((128,), None),
    "k_norm.bias": ((128,), None), "weights_proj.weight": ((64, 7168), None),
}  # fmt: skip


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
    for dtype in ("F32", "BF16"):  # transformers keeps it in float32
        specs = after | {weights_proj: TensorSpec(weights_proj, dtype, (64, 7168))}
        assert take_inventory(FAMILY, FAMILY.dimensions(V32), specs)[weights_proj].expected.role is Role.INDEXER


def test_transformers_saves_v32s_names(golden: Path) -> None:
    saved = json.loads((golden / "transformers_names.json").read_text())["deepseek_v32"]
    expected = FAMILY.expected(FAMILY.dimensions({"model_type": "deepseek_v32", **saved["config_args"]}))
    assert {name: list(item.shape) for name, item in expected.items()} == {n: s for n, (_, s) in saved["saved"].items()}


def test_v32_needs_the_indexers_sizes() -> None:
    with pytest.raises(CheckpointError, match=r"index_n_heads is None(.|\n)*index_topk is None"):
        FAMILY.dimensions(R1 | {"model_type": "deepseek_v32", "index_head_dim": 8})
    with pytest.raises(CheckpointError, match="the indexer reads the latent query"):
        FAMILY.dimensions(V32 | {"q_lora_rank": None})
