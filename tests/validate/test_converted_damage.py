"""Damage to a converted directory: as it happens, and by a converter that is wrong, so that the digests agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conversions import (
    CT,
    GPT_OSS,
    MODELOPT,
    SGLANG,
    STACK,
    V3,
    V4,
    V4_STEM,
    Ours,
    Published,
    blamed,
    convert,
    edit,
    forge,
    last_bit,
    nibble,
    prove,
    swap,
    untested,
)
from rtn_writer import write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8.checkpoint.lineage import read_lineage, write_lineage
from w4afp8.validate import gate, validate
from w4afp8.validate.gate import State

# (config, source's format, target's, where the codes are, where the scales are, what the message must name)
BROKEN = {
    "modelopt": ({}, MODELOPT, SGLANG, f"{V3}.weight", f"{V3}.weight_scale_inv", V3),
    "kimi": ({}, "compressed_tensors_int4", CT, f"{V3}.weight_packed", f"{V3}.weight_scale", V3),
    "v4 in bf16": (V4, "deepseek_mxfp4", "bf16", f"{V4_STEM}.weight", f"{V4_STEM}.weight", V4_STEM),
    "v4 in fp8": (V4, "deepseek_mxfp4", "deepseek_ue8m0", f"{V4_STEM}.weight", f"{V4_STEM}.scale", V4_STEM),
    "gpt-oss apart": (
        GPT_OSS, "gptoss_mxfp4", "compressed_tensors_mxfp4", "model.layers.0.mlp.experts.0.gate_proj.weight_packed",
        "model.layers.0.mlp.experts.0.gate_proj.weight_scale", "model.layers.0.mlp.experts.0.gate_proj",
    ),
}  # fmt: skip
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor], str], None], int]] = {
    "a nibble": (nibble, 3), "a scale": (last_bit, 4), "experts swapped": (swap, 3),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named_whatever_the_digests_say(published: Published, tmp_path: Path, case: str, damage: str) -> None:
    config, style, target, *where, named = BROKEN[case]
    out = convert(published(config, style), target, tmp_path / "out", shard_gb=1)
    change, which = DAMAGE[damage]
    name = where[which - 3]

    def broken(held: dict[str, Tensor]) -> None:
        if name in held:
            change(held, name)

    edit(out, broken)
    found = blamed(prove(out, published(config, style)))
    assert any(name in text and "as the conversion wrote" in text for text in found["digests"])
    assert any(text.startswith(named) and "the file changed after the conversion" in text for text in found["numbers"])
    assert gate.state(out).state is State.FAILED
    forge(out)
    found = blamed(prove(out, published(config, style)))
    assert "digests" not in found
    assert any(text.startswith(named) and "the source changed since" in text for text in found["numbers"])
    assert gate.state(out).state is State.FAILED


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_without_the_source_too(ours: Ours, tmp_path: Path, damage: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    shutil.rmtree(tmp_path / f"ours-{SGLANG}")
    change, which = DAMAGE[damage]
    name = V3 + (".weight", ".weight_scale")[which - 3]

    def broken(held: dict[str, Tensor]) -> None:
        if name in held:
            change(held, name)

    edit(out, broken)
    forge(out)
    found = blamed(prove(out))["numbers"]
    assert any(text.startswith(V3) and "led back" in text and "was proven with" in text for text in found)
    assert gate.state(out).state is State.FAILED


def test_stacked_experts_that_changed_places_are_named(published: Published, tmp_path: Path) -> None:
    source = published(GPT_OSS, "gptoss_mxfp4")
    apart = convert(source, "compressed_tensors_mxfp4", tmp_path / "apart")
    out = convert(apart, "gptoss_mxfp4", tmp_path / "stacked")
    edit(out, lambda held: swap(held, f"{STACK}_blocks") if f"{STACK}_blocks" in held else None)
    forge(out)
    found = blamed(validate(out, apart))["numbers"]
    assert {text.split(":")[0] for text in found} == {
        f"model.layers.0.mlp.experts.{expert}.{name}.weight" for expert in (0, 1) for name in ("gate_proj", "up_proj")
    }


@pytest.mark.parametrize("gone", ["model.layers.1.mlp.experts.1.down_proj.pre_quant_scale", "lm_head.weight"])
def test_a_tensor_that_is_gone_is_named(ours: Ours, tmp_path: Path, gone: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    edit(out, lambda held: held.pop(gone, None))
    report = prove(out)
    stem, _, suffix = gone.rpartition(".")
    assert any(stem in text and suffix in text for text in blamed(report)["tensors"])
    assert "numbers" in untested(report) and gate.state(out).state is State.FAILED


def test_modelopts_own_scalars_are_held_to_what_they_must_be(ours: Ours, tmp_path: Path) -> None:
    """No other format has them: an input factor that is not 1 changes the product, the two amax the FP8 one."""
    source = ours(SGLANG)
    for suffix, check in (
        ("pre_quant_scale", "numbers"),
        ("weight_scale_2", "numbers"),
        ("input_scale", "input scales"),
    ):
        out = convert(source, MODELOPT, tmp_path / suffix)

        def twice(held: dict[str, Tensor], name: str = f"{V3}.{suffix}") -> None:
            if name in held:
                held[name] *= 2

        edit(out, twice)
        forge(out)
        found = blamed(validate(out, source))
        assert list(found) in ([check], ["written form", check]), found
        assert all(text.startswith(V3) for text in found[check])
        stem = V3.rpartition(".")[0]
        assert any(text.startswith(stem) for text in blamed(validate(out))[check]), "without the source"


def test_kept_scales_are_the_sources(ours: Ours, tmp_path: Path) -> None:
    source = convert(ours(SGLANG), MODELOPT, tmp_path / "modelopt")
    assert prove(source).proven
    out = convert(source, CT, tmp_path / "ct")
    kept = out / "w4afp8/act_scales.safetensors"
    held = load_file(kept)
    next(iter(held.values())).mul_(2)
    save_file(held, kept, {"format": "pt"})
    forge(out)
    assert "input scales" in blamed(validate(out, source))
    assert "numbers" in blamed(validate(out))  # ModelOpt has them in every matrix
    kept.unlink()
    assert f"{kept.name}" in blamed(validate(out, source))["digests"][0]


def test_a_matrix_that_no_longer_unpacks_is_named(ours: Ours, tmp_path: Path) -> None:
    source = ours(SGLANG)
    out = convert(source, CT, tmp_path / "out")
    edit(out, lambda held: held[f"{V3}.weight_shape"].add_(1) if f"{V3}.weight_shape" in held else None)
    for report in (validate(out, source), validate(out)):
        assert blamed(report)["values"][0].startswith(f"{V3}.weight_shape: found weight_shape says")


def test_scales_that_the_record_does_not_mention_are_the_sources_too(ours: Ours, tmp_path: Path) -> None:
    """Kept outside the index, they are no tensor that is led back: the proof's own list of files counts."""
    source = convert(ours(SGLANG), CT, tmp_path / "ct")
    assert prove(source).proven
    out = convert(source, SGLANG, tmp_path / "out")
    edit(out, lambda held: [scale.mul_(2) for name, scale in held.items() if name.endswith("input_scale")])
    held = load_file(out / "act_scales.safetensors")
    save_file({name: 2 * scale for name, scale in held.items()}, out / "act_scales.safetensors", {"format": "pt"})
    lineage = read_lineage(out)
    write_lineage(out, replace(lineage, source=replace(lineage.source, kept={})))
    forge(out)
    assert "those that ct was proven with" in blamed(validate(out))["input scales"][0]


def test_a_file_of_the_format_is_held_to_the_config_without_the_source(ours: Ours, tmp_path: Path) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    write_json(out / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})
    forge(out)
    assert "hf_quant_config.json" in blamed(validate(out))["side files"][0]


def test_a_field_that_engines_would_obey_is_no_field_of_a_conversion(ours: Ours, tmp_path: Path) -> None:
    out = convert(ours(SGLANG), CT, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8}
    write_json(out / "config.json", config)
    forge(out)
    assert "quantization_config.kv_cache_scheme" in blamed(validate(out))["config"][0]
