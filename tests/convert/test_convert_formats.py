"""Whole checkpoints between every two formats that hold the same numbers: there and back byte for byte, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8 import conversion, pipeline
from w4afp8.errors import CheckpointError, FormatError, QuantizationError, RecipeError, W4AFP8Error
from w4afp8.numerics import e8m0
from w4afp8.synthetic import write_checkpoint

Toy = Callable[..., Path]
SGLANG, CT, MODELOPT = "sglang_w4afp8", "compressed_tensors_w4a8", "modelopt_w4a8_awq"
DEEPSEEK_MX, CT_MX, GPTOSS_MX = "deepseek_mxfp4", "compressed_tensors_mxfp4", "gptoss_mxfp4"

V4 = {
    "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 64, "q_lora_rank": 64, "num_experts_per_tok": 2,
    "n_routed_experts": 3, "n_shared_experts": 1, "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 2,
    "index_head_dim": 32, "index_topk": 8, "hc_mult": 2, "num_hash_layers": 1, "compress_ratios": [0, 0, 4, 128],
    "num_nextn_predict_layers": 1, "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus",
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 160, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2, "swiglu_limit": 7.0,
}  # fmt: skip


def convert(source: Path, target: str, out: Path) -> dict[str, Any]:
    return conversion.run(conversion.prepare(source, target, out, 0.0002))


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def raw(folder: Path) -> dict[str, tuple[Any, list[int], bytes]]:
    """Every tensor's dtype, shape and bytes, wherever it stands."""
    found = {}
    for name, t in tensors(folder).items():
        found[name] = (t.dtype, list(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors where they stand."""
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})


def made(folder: Path, base: dict[str, Any], style: str) -> Path:
    write_checkpoint(folder, base, dtype=style, shard_gb=0.0003)
    return folder


def refused(action: Callable[[], Any], kind: type[W4AFP8Error], says: str, out: Path) -> None:
    with pytest.raises(kind, match=says):
        action()
    assert not (out / "config.json").exists() and not list(out.glob("*.safetensors"))


# ModelOpt


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


# Kimi-K2


@pytest.fixture
def kimi_config(toy_config: dict[str, Any]) -> dict[str, Any]:
    return toy_config | {"model_type": "kimi_k2", "hidden_size": 256, "moe_intermediate_size": 256}


def test_kimis_groups_of_32_become_128_where_four_are_one(kimi_config: dict[str, Any], tmp_path: Path) -> None:
    source = made(tmp_path / "kimi", kimi_config, "compressed_tensors_int4")
    name = "model.layers.1.mlp.experts.1.gate_proj"
    before = tensors(source)
    assert before[f"{name}.weight_scale"].shape == (256, 8)
    found = convert(source, CT, tmp_path / "ct")
    assert found["from"] == "compressed_tensors_int4"
    after = tensors(tmp_path / "ct")
    assert torch.equal(after[f"{name}.weight_packed"], before[f"{name}.weight_packed"])
    assert torch.equal(after[f"{name}.weight_scale"], before[f"{name}.weight_scale"][:, ::4])
    said = config(tmp_path / "ct")["quantization_config"]
    assert said["format"] == "pack-quantized" and list(said["config_groups"]) == ["group_0"]
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 128
    assert said["config_groups"]["group_0"]["input_activations"]["num_bits"] == 8
    everything_else = {n for n in before if ".experts." not in n}
    assert all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in everything_else)


def test_kimis_groups_that_differ_are_refused_and_name_quantize(kimi_config: dict[str, Any], tmp_path: Path) -> None:
    source, out = made(tmp_path / "kimi", kimi_config, "compressed_tensors_int4"), tmp_path / "out"
    name = "model.layers.2.mlp.experts.0.up_proj.weight_scale"

    def differ(held: dict[str, Tensor]) -> None:
        if name in held:
            held[name][7, 6] *= 2

    edit(source, differ)
    says = r"experts\.0\.up_proj.*row 7: the scales of inputs 128\.\.255 are .*not one of 128.*use w4afp8 quantize"
    refused(lambda: convert(source, CT, out), FormatError, says, out)
    refused(lambda: convert(source, SGLANG, out), RecipeError, "gate_proj.weight stands in bf16|static activation", out)


def test_int4_weights_in_groups_of_128_become_w4afp8_by_their_config(
    kimi_config: dict[str, Any], tmp_path: Path
) -> None:
    source = made(tmp_path / "w4a16", kimi_config, "compressed_tensors_int4")
    convert(source, CT, tmp_path / "ct")
    said = config(tmp_path / "ct")
    del said["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    (tmp_path / "ct" / "config.json").write_text(json.dumps(said))
    convert(tmp_path / "ct", CT, tmp_path / "w4a8")
    assert raw(tmp_path / "w4a8") == raw(tmp_path / "ct")
    assert "input_activations" in config(tmp_path / "w4a8")["quantization_config"]["config_groups"]["group_0"]
    out = tmp_path / "out"
    refused(lambda: convert(tmp_path / "w4a8", CT, out), RecipeError, f"stands in {CT} already", out)


def test_kimi_is_quantized_where_it_cannot_be_converted(
    kimi_config: dict[str, Any], small_recipe: Callable[..., Any], miniature: Path, tmp_path: Path
) -> None:
    source = tmp_path / "kimi"
    write_checkpoint(source, kimi_config, dtype="compressed_tensors_int4", tokenizer_from=miniature)
    pipeline.run(pipeline.prepare(source, small_recipe(), tmp_path / "out"))
    assert config(tmp_path / "out")["quantization_config"]["quant_method"] == "w4afp8"


# DeepSeek-V4


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


# GPT-OSS


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
