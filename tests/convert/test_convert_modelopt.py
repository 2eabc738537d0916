"""ModelOpt's W4A8: to it and back byte for byte, and what it has beyond SGLang's refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CT,
    MODELOPT,
    SGLANG,
    config,
    convert,
    edit,
    made,
    raw,
    refused,
    tensors,
)
from torch import Tensor

from w4afp8 import pipeline
from w4afp8.errors import FormatError, RecipeError, W4AFP8Error

Toy = Callable[..., Path]


@pytest.fixture
def sglang(toy: Toy, small_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    out = tmp_path / "sglang"
    pipeline.run(pipeline.prepare(toy(), small_recipe(), out))
    return out


def test_sglang_becomes_modelopt_and_comes_back_byte_for_byte(sglang: Path, tmp_path: Path) -> None:
    convert(sglang, MODELOPT, tmp_path / "modelopt")
    found, before = tensors(tmp_path / "modelopt"), tensors(sglang)
    stem = "model.layers.1.mlp.experts.0"
    assert found[f"{stem}.up_proj.weight"].shape == (64, 128) and found[f"{stem}.up_proj.weight"].dtype == torch.uint8
    assert found[f"{stem}.up_proj.input_scale"] == before[f"{stem}.w3.input_scale"][0]
    scale = found[f"{stem}.up_proj.weight_scale"]
    assert torch.equal(scale, before[f"{stem}.up_proj.weight_scale_inv"])
    assert found[f"{stem}.up_proj.weight_scale_2"] == scale.max() * 7 / 448
    assert (found[f"{stem}.up_proj.pre_quant_scale"] == 1).all()
    side = json.loads((tmp_path / "modelopt" / "hf_quant_config.json").read_text())
    assert side["quantization"]["quant_algo"] == "MIXED_PRECISION"
    layers = json.loads((tmp_path / "modelopt" / "quant_cfg.json").read_text())["quantized_layers"]
    assert layers["model.layers.1.mlp.experts"] == {
        "quant_algo": "W4A8_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True,
    }  # fmt: skip
    assert not any(name.endswith("act_scales.safetensors") for name in json.dumps(config(tmp_path / "modelopt")))
    convert(tmp_path / "modelopt", SGLANG, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(sglang)
    assert config(tmp_path / "back") == config(sglang)


def test_kept_scales_reach_modelopt_too(sglang: Path, tmp_path: Path) -> None:
    convert(sglang, CT, tmp_path / "ct")
    convert(tmp_path / "ct", MODELOPT, tmp_path / "by-way")
    convert(sglang, MODELOPT, tmp_path / "direct")
    assert raw(tmp_path / "by-way") == raw(tmp_path / "direct")
    (tmp_path / "ct" / "w4afp8" / "act_scales.safetensors").unlink()
    out = tmp_path / "none"
    refused(
        lambda: convert(tmp_path / "ct", MODELOPT, out), RecipeError, "needs static activation scales.*quantize", out
    )


def test_what_modelopt_has_beyond_sglang_is_refused_by_name(sglang: Path, tmp_path: Path) -> None:
    out, modelopt = tmp_path / "out", tmp_path / "modelopt"
    convert(sglang, MODELOPT, modelopt)
    awq = "model.layers.1.mlp.experts.2.down_proj.pre_quant_scale"

    def awq_scale(held: dict[str, Tensor]) -> None:
        if awq in held:
            held[awq][5] = 0.5

    edit(modelopt, awq_scale)
    refused(
        lambda: convert(modelopt, SGLANG, out),
        FormatError,
        r"experts.2.down_proj.*input 5 is 0\.5, expected 1; fold",
        out,
    )
    convert(sglang, MODELOPT, tmp_path / "again")
    gate = "model.layers.2.mlp.experts.0.gate_proj.input_scale"

    def unequal(held: dict[str, Tensor]) -> None:
        if gate in held:
            held[gate] *= 2

    edit(tmp_path / "again", unequal)
    refused(lambda: convert(tmp_path / "again", SGLANG, out), FormatError, "one scale for both", out)
    missing = tmp_path / "again"
    index = json.loads((missing / "model.safetensors.index.json").read_text())
    del index["weight_map"][gate]
    (missing / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(W4AFP8Error, match="gate_proj"):
        convert(missing, SGLANG, out)


def test_modelopt_of_sixteen_bit_linears_says_one_algorithm(
    toy: Toy, small_recipe: Callable[..., Any], toy_config: dict[str, Any], tmp_path: Path
) -> None:
    recipe = small_recipe(output={"format": CT, "shard_gb": 0.0002})
    pipeline.run(pipeline.prepare(toy(dtype="bf16"), recipe, tmp_path / "ct"))
    convert(tmp_path / "ct", MODELOPT, tmp_path / "modelopt")
    said = json.loads((tmp_path / "modelopt" / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == "W4A8_AWQ" and said["group_size"] == 128 and "lm_head" in said["exclude_modules"]
    assert not (tmp_path / "modelopt" / "quant_cfg.json").exists()
    assert tensors(tmp_path / "modelopt")["model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    convert(tmp_path / "modelopt", CT, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(tmp_path / "ct")
    kept = "w4afp8/act_scales.safetensors"
    assert (tmp_path / "back" / kept).read_bytes() == (tmp_path / "ct" / kept).read_bytes()
    source = made(tmp_path / "kimi", toy_config, "compressed_tensors_int4")
    refused(lambda: convert(source, MODELOPT, tmp_path / "o"), RecipeError, "needs static activation", tmp_path / "o")
