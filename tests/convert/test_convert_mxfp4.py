"""DeepSeek-V4 and GPT-OSS: MXFP4 checkpoints there and back byte for byte, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import (
    CT_MX,
    DEEPSEEK_MX,
    GPT_OSS,
    GPTOSS_MX,
    SGLANG,
    V4,
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
from w4afp8.errors import CheckpointError, FormatError, QuantizationError, RecipeError
from w4afp8.numerics import e8m0


def test_v4_becomes_compressed_tensors_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = made(tmp_path / "v4", V4, DEEPSEEK_MX)
    before = tensors(source)
    found = convert(source, CT_MX, tmp_path / "ct")
    after = tensors(tmp_path / "ct")
    for stem in ("layers.3.ffn.experts.2.w1", "mtp.0.ffn.experts.0.w2"):
        assert torch.equal(after[f"{stem}.weight_packed"], before[f"{stem}.weight"].view(torch.uint8))
        assert torch.equal(after[f"{stem}.weight_scale"], before[f"{stem}.scale"].view(torch.uint8))
        assert f"{stem}.weight_packed" in found["digests"]
    blocks = after["layers.0.attn.wq_a.weight_scale"]
    assert torch.equal(blocks, e8m0.decode(before["layers.0.attn.wq_a.scale"].view(torch.uint8)))
    assert torch.equal(after["layers.0.ffn.gate.tid2eid"], before["layers.0.ffn.gate.tid2eid"])
    convert(tmp_path / "ct", DEEPSEEK_MX, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(source)
    assert config(tmp_path / "back") == config(source)


def test_v4_is_decided_by_its_tensors_never_by_a_field(tmp_path: Path) -> None:
    source = made(tmp_path / "v4", V4, DEEPSEEK_MX)
    for field in ({"expert_dtype": "fp8"}, {}):
        lying = {k: v for k, v in config(source).items() if k != "expert_dtype"} | field
        (source / "config.json").write_text(json.dumps(lying))
        found = convert(source, CT_MX, tmp_path / f"ct{len(field)}")
        assert found["from"] == DEEPSEEK_MX
    base = made(tmp_path / "base", V4, "deepseek_ue8m0")
    (base / "config.json").write_text(json.dumps(config(base) | {"expert_dtype": "fp4"}))
    out = tmp_path / "out"
    refused(lambda: convert(base, CT_MX, out), RecipeError, "deepseek_ue8m0, and cannot become .*quantize", out)


@pytest.mark.parametrize("target", ["deepseek_ue8m0", "bf16"])
def test_v4_unfolds_exactly(tmp_path: Path, target: str) -> None:
    source, out = made(tmp_path / "v4", V4, DEEPSEEK_MX), tmp_path / "out"
    convert(source, target, out)
    from w4afp8 import formats

    before, after = tensors(source), tensors(out)
    stem = "layers.1.ffn.experts.1.w3"
    mine = formats.get(DEEPSEEK_MX).unpack({".weight": before[f"{stem}.weight"], ".scale": before[f"{stem}.scale"]})
    form = formats.get(target)
    theirs = form.unpack({part.suffix: after[stem + part.suffix] for part in form.parts})
    assert torch.equal(mine.dequantize(), theirs.dequantize())
    said = config(out)
    assert said.get("expert_dtype") == ("fp8" if target == "deepseek_ue8m0" else None)
    assert ("quantization_config" in said) == (target != "bf16")
    refused(lambda: convert(out, DEEPSEEK_MX, tmp_path / "x"), RecipeError, "use w4afp8 quantize", tmp_path / "x")


def test_v4_blocks_that_do_not_fold_are_named(tmp_path: Path) -> None:
    source, out = made(tmp_path / "v4", V4, DEEPSEEK_MX), tmp_path / "out"
    name = "layers.1.ffn.experts.1.w3.scale"

    def apart(held: dict[str, Tensor]) -> None:
        if name in held:
            held[name].view(torch.uint8)[3, 1] = 60

    edit(source, apart)
    says = r"layers\.1\.ffn\.experts\.1\.w3\.weight: group \[3, 1\] has the scale byte 60"
    refused(lambda: convert(source, "deepseek_ue8m0", out), FormatError, says, out)
    convert(source, "bf16", tmp_path / "bf16")  # which still holds it

    def nan(held: dict[str, Tensor]) -> None:
        if name in held:
            held[name].view(torch.uint8)[3, 1] = 255

    edit(source, nan)
    refused(lambda: convert(source, CT_MX, out), QuantizationError, "w3.scale .* is NaN", out)


def test_v4_becomes_no_int4_and_no_gpt_oss(tmp_path: Path) -> None:
    source, out = made(tmp_path / "v4", V4, DEEPSEEK_MX), tmp_path / "out"
    refused(lambda: convert(source, SGLANG, out), RecipeError, "e2m1 grid is not uniform", out)
    refused(lambda: convert(source, GPTOSS_MX, out), RecipeError, "experts in one tensor; here each has its own", out)
    with pytest.raises(CheckpointError, match=r"no forward pass of it here.*w4afp8 convert"):
        from w4afp8.recipes._load import build

        pipeline.prepare(source, build({}, "a test's recipe"), out)


def test_gpt_oss_comes_apart_and_together_byte_for_byte(tmp_path: Path) -> None:
    source = made(tmp_path / "oss", GPT_OSS, GPTOSS_MX)
    before = tensors(source)
    convert(source, CT_MX, tmp_path / "ct")
    after = tensors(tmp_path / "ct")
    stem = "model.layers.1.mlp.experts"
    blocks, bias = before[f"{stem}.gate_up_proj_blocks"], before[f"{stem}.gate_up_proj_bias"]
    assert torch.equal(after[f"{stem}.2.up_proj.weight_packed"], blocks[2, 1::2].flatten(1))
    assert torch.equal(after[f"{stem}.2.gate_proj.weight_scale"], before[f"{stem}.gate_up_proj_scales"][2, 0::2])
    assert torch.equal(after[f"{stem}.0.up_proj.bias"], bias[0, 1::2])
    assert torch.equal(after[f"{stem}.0.down_proj.bias"], before[f"{stem}.down_proj_bias"][0])
    assert not any("blocks" in name or "_bias" in name for name in after)
    convert(tmp_path / "ct", GPTOSS_MX, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(source)
    assert config(tmp_path / "back") == config(source)
    convert(source, DEEPSEEK_MX, tmp_path / "deepseek")
    convert(tmp_path / "deepseek", GPTOSS_MX, tmp_path / "again")
    assert raw(tmp_path / "again") == raw(source)


def test_gpt_oss_becomes_bf16_experts_with_a_name_each(tmp_path: Path) -> None:
    source = made(tmp_path / "oss", GPT_OSS, GPTOSS_MX)
    convert(source, "bf16", tmp_path / "bf16")
    assert tensors(tmp_path / "bf16")["model.layers.0.mlp.experts.1.down_proj.weight"].shape == (160, 96)
    refused(
        lambda: convert(tmp_path / "bf16", GPTOSS_MX, tmp_path / "x"),
        RecipeError,
        "use w4afp8 quantize",
        tmp_path / "x",
    )


def test_a_bias_that_is_missing_is_named(tmp_path: Path) -> None:
    source = made(tmp_path / "oss", GPT_OSS, GPTOSS_MX)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.1.mlp.experts.down_proj_bias"]
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"down_proj_bias is missing: expected a expert bias of \[3, 160\]|down_proj_bias"
    ):
        convert(source, CT_MX, tmp_path / "out")


def test_inspect_says_what_stands_where(tmp_path: Path) -> None:
    from w4afp8.terminal.inspect_view import inspect_json

    oss = inspect_json(made(tmp_path / "oss", GPT_OSS, GPTOSS_MX), tensors=False)
    assert oss["swiglu"] == {"limit": 7.0, "alpha": 1.702, "offset": 1.0} and oss["family"] == "gpt_oss"
    assert {(r["role"], r["format"], r["count"]) for r in oss["roles"]} >= {("routed expert", GPTOSS_MX, 4)}
    convert(tmp_path / "oss", CT_MX, tmp_path / "ct")
    apart = inspect_json(tmp_path / "ct", tensors=False)
    assert {(r["role"], r["format"], r["count"]) for r in apart["roles"]} >= {("routed expert", CT_MX, 2 * 3 * 3)}
    v4 = inspect_json(made(tmp_path / "v4", V4, DEEPSEEK_MX), tensors=False)
    assert v4["swiglu"] == {"limit": 10.0, "alpha": 1.0, "offset": 0.0} and v4["mtp_layers"] == 1
    roles = {(r["role"], r["format"]) for r in v4["roles"]}
    assert roles >= {("routed expert", DEEPSEEK_MX), ("attention", "deepseek_ue8m0"), ("compressor", "bf16")}
