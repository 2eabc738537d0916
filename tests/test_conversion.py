"""Whole checkpoints: there and back byte for byte, whatever happens on the way; or refused before a byte is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from children import FINISHED, Countdown, in_child, wait
from outputs import tree
from w4afp8 import conversion, formats, pipeline
from w4afp8.cli import cli, code_of
from w4afp8.errors import (
    CheckpointError,
    FormatError,
    QuantizationError,
    RecipeError,
    ResumeError,
    Stopped,
    W4AFP8Error,
)
from w4afp8.numerics import fp8
from w4afp8.recipes._recipe import Resume
from w4afp8.validate import validate

Toy = Callable[..., Path]
Small = Callable[..., Any]
CT, SGLANG = "compressed_tensors_w4a8", "sglang_w4afp8"
SHARD_GB = 0.0002
EXPERT = "model.layers.1.mlp.experts.0.up_proj"


@pytest.fixture
def quantized(toy: Toy, small_recipe: Small, tmp_path: Path) -> Callable[..., Path]:
    """Quantizes a toy to sglang_w4afp8."""

    def make(**changes: Any) -> Path:
        out = tmp_path / "sglang"
        pipeline.run(pipeline.prepare(toy(**changes), small_recipe(), out))
        return out

    return make


def convert(source: Path, target: str, out: Path, **options: Any) -> dict[str, Any]:
    return conversion.run(conversion.prepare(source, target, out, SHARD_GB), **options)


def files(folder: Path) -> dict[str, bytes]:
    """Everything but what only one direction has: the log, and the account of the conversion."""
    left = ("w4afp8/run.jsonl", "w4afp8/conversion.json")
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in sorted(found.items()) if name not in left}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16"}, {"num_nextn_predict_layers": 0}])
def test_there_and_back_is_the_same_directory_byte_for_byte(
    quantized: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    source, there, back = quantized(**changes), tmp_path / "ct", tmp_path / "back"
    found = convert(source, CT, there)
    assert (found["from"], found["to"]) == (SGLANG, CT)
    convert(there, SGLANG, back)
    assert files(back) == files(source)
    assert validate(back).passed


def test_every_tensor_is_where_the_other_engine_looks(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source, there = quantized(), tmp_path / "ct"
    convert(source, CT, there)
    before, after = tensors(source), tensors(there)
    parts = {s: after[EXPERT + s] for s in (".weight_packed", ".weight_scale", ".weight_shape")}
    ours = formats.get(SGLANG).unpack({s: before[EXPERT + s] for s in (".weight", ".weight_scale_inv")})
    assert torch.equal(formats.get(CT).unpack(parts).dequantize(), ours.dequantize())
    attention = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(after[f"{attention}_scale"], before[f"{attention}_scale_inv"])
    assert after[attention].dtype == torch.float8_e4m3fn
    assert not [name for name in after if name.endswith(("_scale_inv", "input_scale"))]
    index = json.loads((there / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(after)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in after.values())


def test_the_config_names_every_linear_once(quantized: Callable[..., Path], tmp_path: Path) -> None:
    """Each stored matrix falls to the group that its dtype needs, or is ignored because it has 16 bits."""

    def named(patterns: list[str], module: str) -> bool:
        return any(re.match(p[3:], module) if p.startswith("re:") else p == module for p in patterns)

    there = tmp_path / "ct"
    convert(quantized(), CT, there)
    config = json.loads((there / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "mixed-precision"
    blocks = config["config_groups"]["group_1"]["targets"]
    for name, tensor in tensors(there).items():
        module, _, part = name.rpartition(".")
        if tensor.ndim != 2 or "embed_tokens" in name or part not in ("weight", "weight_packed"):
            continue
        kind = {torch.int32: "int4", torch.float8_e4m3fn: "fp8"}.get(tensor.dtype, "ignored")
        says = "ignored" if named(config["ignore"], module) else "fp8" if named(blocks, module) else "int4"
        assert says == kind, name


def scales_edited(folder: Path, value: float, name: str = f"{EXPERT}.weight_scale_inv") -> None:
    for path in folder.glob("model-*.safetensors"):
        held = load_file(path)
        if name in held:
            held[name][3, 0] = value
            save_file(held, path, {"format": "pt"})


def test_a_scale_that_the_target_does_not_hold_is_named_before_anything_is_written(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = quantized()
    scales_edited(source, 0.3)
    with pytest.raises(FormatError, match=rf"{EXPERT}\.weight: scale \[3, 0\] is 0\.3.*bfloat16 does not hold"):
        convert(source, CT, tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_named_before_anything_is_written(
    quantized: Callable[..., Path], tmp_path: Path, value: float
) -> None:
    source, there, back = quantized(), tmp_path / "ct", tmp_path / "back"
    convert(source, CT, there)
    scales_edited(there, value, f"{EXPERT}.weight_scale")
    says = rf"{EXPERT}\.weight_scale .*element 3 is NaN or infinite"
    refused(lambda: convert(there, SGLANG, back), QuantizationError, says, back)
    scales_edited(source, value)
    refused(lambda: convert(source, CT, back), QuantizationError, "element 3 is NaN or infinite", back)


def with_16_bit_attention(folder: Path) -> None:
    """As another tool may have left it: FP8 blocks of attention widened."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in folder.glob("model-*.safetensors"):
        held = load_file(path)
        for name in [n for n in held if ".self_attn." in n and n.endswith("_scale_inv")]:
            scale = held.pop(name)
            index["weight_map"].pop(name)
            weight = fp8.decode_blocks(held[name.removesuffix("_scale_inv")], scale)
            held[name.removesuffix("_scale_inv")] = weight.to(torch.bfloat16)
        save_file(held, path, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refused(action: Callable[[], Any], kind: type[W4AFP8Error], says: str, out: Path) -> None:
    with pytest.raises(kind, match=says):
        action()
    assert not out.exists()


def test_what_cannot_be_converted_is_refused_with_the_reason(
    toy: Toy, quantized: Callable[..., Path], tmp_path: Path
) -> None:
    out, there = tmp_path / "out", tmp_path / "ct"
    fp8, sglang = toy("plain"), quantized()
    refused(lambda: convert(fp8, CT, out), RecipeError, "deepseek_fp8, and cannot become .*use w4afp8 quantize", out)
    refused(lambda: convert(sglang, SGLANG, out), RecipeError, "stands in sglang_w4afp8 already", out)
    refused(lambda: convert(sglang, "bf16", out), RecipeError, "more digits than bfloat16 holds", out)
    refused(
        lambda: convert(sglang, "compressed_tensors_fp8", out), RecipeError, "is no checkpoint format; known: b", out
    )
    refused(lambda: convert(sglang, "compressed_tensors_int4", out), RecipeError, "is read, not written", out)
    refused(lambda: convert(sglang, "sglang", out), RecipeError, "did you mean 'sglang_w4afp8'", out)
    convert(sglang, CT, there)
    scales = there / "w4afp8" / "act_scales.safetensors"
    scales.rename(tmp_path / "elsewhere")
    refused(lambda: convert(there, SGLANG, out), RecipeError, "needs static activation scales", out)
    save_file({"odd": torch.ones(1)}, scales)
    refused(lambda: convert(there, SGLANG, out), FormatError, "does not hold the activation scales", out)
    with_16_bit_attention(sglang)
    refused(
        lambda: convert(sglang, CT, out),
        RecipeError,
        "kv_a_proj_with_mqa.weight has 16 bits and .* stands in compressed_tensors_fp8",
        out,
    )


def stops_after(count: int) -> Callable[[], bool]:
    asked: Iterator[bool] = iter([False] * count + [True] * 99)
    return lambda: next(asked)


def test_a_stopped_conversion_goes_on_to_the_same_bytes(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source, whole, parts = quantized(), tmp_path / "whole", tmp_path / "parts"
    convert(source, CT, whole)
    for _ in range(2):
        with pytest.raises(Stopped, match="stopped before layer-"):
            convert(source, CT, parts, stop=stops_after(2))
        assert not (parts / "config.json").exists()
    with pytest.raises(ResumeError, match="made from something else"):
        conversion.run(conversion.prepare(source, CT, parts, 1.0))
    convert(source, CT, parts, resume=Resume.REQUIRED)
    assert files(parts) == files(whole)
    with pytest.raises(ResumeError, match="holds a finished checkpoint"):
        convert(source, CT, parts)
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(source, CT, source)


def test_killed_between_any_two_steps_on_the_disk(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = quantized()

    def work(out: Path, countdown: int | None = None) -> int:
        counter = Countdown(countdown)
        counter.install()
        convert(source, CT, out)
        (tmp_path / "steps").write_text(str(counter.seen))
        return 0

    assert wait(in_child(lambda: work(tmp_path / "whole"))) == 0
    steps, expected = int((tmp_path / "steps").read_text()), tree(tmp_path / "whole")
    for number in range(12):
        out, step = tmp_path / f"killed-{number}", number * steps // 12
        assert wait(in_child(lambda out=out, step=step: work(out, step))) == -9
        code = wait(in_child(lambda out=out: work(out)))
        assert code in (0, FINISHED), (step, code)
        assert tree(out) == expected, step


def test_never_resuming_begins_anew(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source, out = quantized(), tmp_path / "out"
    with pytest.raises(Stopped):
        convert(source, CT, out, stop=stops_after(1))
    conversion.run(conversion.prepare(source, CT, out, 1.0), resume=Resume.NEVER)
    assert len(list(out.glob("model-*.safetensors"))) == 5, "one shard per unit at 1 GB"


def test_the_command_says_what_was_proven(
    quantized: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = quantized()

    def invoke(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = code_of(lambda: cli.main(args=[str(w) for w in words], standalone_mode=False))
        return code, *capsys.readouterr()

    code, out, _ = invoke("convert", source, "--format", CT, "-o", tmp_path / "ct", "--json")
    assert code == 0
    assert json.loads(out) == {
        "output": str(tmp_path / "ct"), "bytes": json.loads(out)["bytes"], "from": SGLANG, "to": CT,
        "matrices": 3 * 4 * 3, "proof": conversion.PROOF,
    }  # fmt: skip
    code, out, _ = invoke("convert", tmp_path / "ct", "--format", SGLANG, "-o", tmp_path / "back")
    assert code == 0 and "proof" in out and "layer   1" in out
    code, _, err = invoke("convert", source, "--format", "nonsense", "-o", tmp_path / "none")
    assert code == 2 and "unknown format 'nonsense'" in err
    assert invoke("inspect", tmp_path / "ct")[0] == 0


def test_the_record_describes_the_bytes_that_stand_here_now(quantized: Callable[..., Path], tmp_path: Path) -> None:
    """Card and report show it; what quantizing began with stays what it was."""
    source = quantized()
    convert(source, CT, tmp_path / "ct")
    before, after = (json.loads((f / "w4afp8/record.json").read_text()) for f in (source, tmp_path / "ct"))
    assert after["bits_per_weight"] < before["bits_per_weight"] == 4.25, "scales of 16 bits instead of 32"
    for role, row in after["tensors_by_role"].items():
        assert (row["count"], row["bytes_in"]) == tuple(
            before["tensors_by_role"][role][k] for k in ("count", "bytes_in")
        )
    assert after["tensors_by_role"]["routed expert"]["format"] == CT
    assert "deepseek_fp8" not in {row["format"] for row in after["tensors_by_role"].values()}
    sizes = [p.stat().st_size for p in (tmp_path / "ct").glob("model-*.safetensors")]
    stored = sum(row["bytes_out"] for row in after["tensors_by_role"].values())
    assert 0 < sum(sizes) - stored < 0.2 * sum(sizes), "all but the headers"
