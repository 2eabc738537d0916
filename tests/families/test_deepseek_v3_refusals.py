"""DeepSeek-V3: every lie that a config or an index can tell is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from deepseek_headers import FAMILY, R1, V32, header_specs

from w4afp8 import families
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.families._inventory import take_inventory


def refuse(config: dict[str, Any], specs: dict[str, TensorSpec]) -> str:
    with pytest.raises(CheckpointError) as caught:
        take_inventory(FAMILY, FAMILY.dimensions(config), specs)
    return str(caught.value)


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


def test_v32_needs_the_indexers_sizes() -> None:
    with pytest.raises(CheckpointError, match=r"index_n_heads is None(.|\n)*index_topk is None"):
        FAMILY.dimensions(R1 | {"model_type": "deepseek_v32", "index_head_dim": 8})
    with pytest.raises(CheckpointError, match="the indexer reads the latent query"):
        FAMILY.dimensions(V32 | {"q_lora_rank": None})
