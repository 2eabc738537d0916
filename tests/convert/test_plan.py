"""The plan: every output tensor, from headers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert.plan import OUTSIDE, Plan
from w4afp8.convert.plan_quantize import make_plan
from w4afp8.errors import RecipeError
from w4afp8.families._inventory import take_inventory
from w4afp8.recipes._load import build
from w4afp8.recipes._recipe import Mtp, Recipe


def plan_of(folder: Path, recipe: Recipe | None = None) -> Plan:
    with CheckpointReader(folder) as reader:
        family = families.of(reader.config)
        d = family.dimensions(reader.config)
        return make_plan(family, d, reader.config, take_inventory(family, d, reader.specs), recipe or build({}, "x"))


def test_every_source_tensor_is_in_the_output_exactly_once(miniature: Path) -> None:
    plan = plan_of(miniature)
    placed = [spec for unit in plan.units for specs in unit.shards.values() for spec in specs]
    with CheckpointReader(miniature) as reader:
        assert sorted(spec.name for spec in placed) == sorted(reader.specs)
        for spec in placed:
            source = reader.specs[spec.name]
            if ".mlp.experts." not in spec.name:
                assert (spec.dtype, spec.shape) == (source.dtype, source.shape), spec
            elif spec.name.endswith(".weight"):
                assert (spec.dtype, spec.shape) == ("I8", (source.shape[0], source.shape[1] // 2))
            else:
                n, k = reader.specs[spec.name.removesuffix("_scale_inv")].shape
                assert (spec.dtype, spec.shape) == ("F32", (n, k // 128))


def test_sizes_and_map_add_up(miniature: Path) -> None:
    plan = plan_of(miniature, build({"output": {"shard_gb": 0.001}}, "x"))
    placed = {spec.name: spec for unit in plan.units for specs in unit.shards.values() for spec in specs}
    scales = {spec.name: spec for spec in plan.input_scales}
    assert plan.total_bytes == sum(s.span_bytes for s in (placed | scales).values())
    assert plan.weight_map == dict(sorted({name: s.shard for name, s in (placed | scales).items()}.items()))
    assert len(scales) == 4 * 16 * 3
    assert all(spec.shard == "act_scales.safetensors" and spec.shape == (1,) for spec in scales.values())
    for unit in plan.units:
        for file, specs in unit.shards.items():
            assert sum(s.span_bytes for s in specs) <= 1_000_000 or len(specs) == 1
            assert {s.shard for s in specs} == {file}
    files = [file for unit in plan.units for file in unit.shards]
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]


def test_units_are_the_layers_in_order_and_no_shard_is_shared(miniature: Path) -> None:
    plan = plan_of(miniature)
    assert [unit.name for unit in plan.units] == [OUTSIDE, *(f"layer-{i:03d}" for i in range(5))]
    for unit in plan.units:
        for specs in unit.shards.values():
            for spec in specs:
                assert (f".layers.{unit.layer}." in spec.name) == (unit.layer is not None), spec


def test_roles_count_every_byte(miniature: Path) -> None:
    plan = plan_of(miniature)
    experts = next(line for line in plan.roles if line.role == "routed expert")
    assert (experts.tensors, experts.source_format, experts.output_format) == (
        4 * 16 * 3,
        "deepseek_fp8",
        "sglang_w4afp8",
    )
    assert experts.bytes_out == 4 * 16 * 3 * (256 * 128 + 256 * 2 * 4)
    assert sum(line.bytes_out for line in plan.roles) + 4 * len(plan.input_scales) == plan.total_bytes
    with CheckpointReader(miniature) as reader:
        assert sum(line.bytes_in for line in plan.roles) == sum(s.span_bytes for s in reader.specs.values())


def test_mtp_is_quantized_where_engines_know_nothing_else(miniature: Path) -> None:
    plan = plan_of(miniature)
    assert plan.mtp is Mtp.QUANTIZE
    assert plan.config["num_nextn_predict_layers"] == 1
    assert "model.layers.4.mlp.experts.0.w1.input_scale" in plan.weight_map


def test_mtp_can_be_dropped_and_leaves_nothing_behind(miniature: Path) -> None:
    plan = plan_of(miniature, build({"mtp": "drop"}, "x"))
    assert plan.config["num_nextn_predict_layers"] == 0
    assert not [name for name in plan.weight_map if ".layers.4." in name]
    assert [unit.layer for unit in plan.units] == [None, 0, 1, 2, 3]
    files = plan.target.side_files(plan.config)
    assert not [name for name in files["quant_cfg.json"]["quantized_layers"] if ".layers.4." in name]


def test_native_mtp_is_refused_where_engines_cannot_load_it(miniature: Path) -> None:
    with pytest.raises(RecipeError, match=r"mtp: native keeps the experts of layer 4 .*use mtp: quantize or mtp: drop"):
        plan_of(miniature, build({"mtp": "native"}, "x"))


def test_a_model_without_mtp_needs_no_decision(toy: Callable[..., Path]) -> None:
    for mtp in ("auto", "quantize", "drop"):
        plan = plan_of(toy(num_nextn_predict_layers=0), build({"mtp": mtp}, "x"))
        assert plan.config["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"targets": ["re:.*self_attn.*"]}, "is a attention; sglang_w4afp8 holds only routed experts"),
        ({"targets": ["lm_head", r"re:.*\.experts\..*"]}, "lm_head is a head"),
        (
            {"targets": [r"re:.*\.layers\.1\.mlp\.experts\..*"]},
            "expert matrices are not targeted, first model.layers.2",
        ),
        ({"ignore": ["model.layers.1.mlp.experts.0.up_proj"]}, "1 of 48 .*first model.layers.1.mlp.experts.0.up_proj"),
        ({"targets": ["re:.*nothing.*"]}, "patterns of the recipe match nothing"),
        ({"ignore": ["re:.*nothing.*"]}, "ignore: .*matches none"),
        ({"output": {"format": "deepseek_fp8"}}, "can be read but is no output"),
        ({"output": {"format": "w4"}}, "unknown format 'w4'"),
    ],
)
def test_a_recipe_that_engines_cannot_load_is_refused(
    toy: Callable[..., Path], recipe: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        plan_of(toy(n_routed_experts=4, num_hidden_layers=4), build(recipe, "x"))


@pytest.mark.parametrize(("field", "matrix"), [("hidden_size", "gate_proj"), ("moe_intermediate_size", "down_proj")])
def test_an_expert_whose_inputs_are_no_whole_groups_is_named(toy: Callable[..., Path], field: str, matrix: str) -> None:
    folder = toy(**{field: 192})
    with pytest.raises(
        RecipeError, match=rf"experts\.0\.{matrix} is \[.*192\]; .*K = 192 is not a multiple of the group size 128"
    ) as caught:
        plan_of(folder)
    assert caught.value.exit_code == 2


def test_the_source_config_is_kept_but_for_its_quantization(miniature: Path) -> None:
    plan = plan_of(miniature)
    with CheckpointReader(miniature) as reader:
        before = dict(reader.config)
    assert {k: v for k, v in plan.config.items() if k != "quantization_config"} == {
        k: v for k, v in before.items() if k != "quantization_config"
    }
    assert plan.config["quantization_config"]["quant_method"] == "w4afp8"
    assert "modules_to_not_convert" not in plan.config["quantization_config"]


def test_bf16_sources_become_the_same_experts(toy: Callable[..., Path]) -> None:
    """SGLang reads the linears beside the experts as FP8 blocks, so a bf16 source's become that, but no router."""
    plan = plan_of(toy(dtype="bf16"))
    lines = {line.role: line for line in plan.roles}
    assert lines["routed expert"].source_format == "bf16"
    assert lines["routed expert"].output_format == "sglang_w4afp8"
    assert lines["attention"].output_format == lines["shared expert"].output_format == "deepseek_fp8"
    assert {line.output_format for line in plan.roles if line.role in ("router", "embedding", "head")} <= {
        "bf16",
        "f32",
    }
    recoded = {name for unit in plan.units for name in unit.recoded}
    assert recoded and not recoded & {name for unit in plan.units for name in unit.copies}
