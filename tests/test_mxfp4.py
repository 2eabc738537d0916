"""MXFP4 from a source to a proven directory, and on: quantize, validate, eval, convert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from outputs import FOLDS_ALONE
from w4afp8 import conversion, pipeline
from w4afp8.errors import RecipeError
from w4afp8.evaluate import evaluate_many
from w4afp8.validate import validate

Toy = Callable[..., Path]
Small = Callable[..., Any]
CT_MX, DEEPSEEK_MX = "compressed_tensors_mxfp4", "deepseek_mxfp4"


def quantize(source: Path, recipe: Any, out: Path) -> dict[str, Any]:
    return pipeline.run(pipeline.prepare(source, recipe, out))


def edit(folder: Path, name: str, change: Callable[[Tensor], None]) -> None:
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        if name in held:
            change(held[name])
            save_file(held, path, {"format": "pt"})


def failed(folder: Path, source: Path | None = None) -> list[str]:
    return [check.name for check in validate(folder, source).checks if check.failed]


@pytest.mark.parametrize("method", ["rtn", "awq"])
@pytest.mark.parametrize("form", [CT_MX, DEEPSEEK_MX])
def test_what_is_quantized_is_proven(toy: Toy, small_recipe: Small, tmp_path: Path, method: str, form: str) -> None:
    source, out = toy(), tmp_path / "out"
    record = quantize(source, small_recipe(method, scheme="MXFP4", output={"format": form, "shard_gb": 0.0002}), out)
    assert record["bits_per_weight"] == 4.25
    assert failed(out, source) == []
    errors = [layer["error"] for layer in record["layers"]]
    assert all(0 < e["rtn"] < 0.1 for e in errors)
    assert all(e["chosen"] < e["rtn"] if method == "awq" else e["chosen"] == e["rtn"] for e in errors)
    assert not (out / "act_scales.safetensors").exists()


def test_the_kernels_are_not_said_to_prove_what_they_do_not_multiply(
    toy: Toy, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    quantize(toy(), small_recipe(scheme="MXFP4"), out)
    monkeypatch.setattr("w4afp8.kernels.device._is_ready", lambda: True)
    report = validate(out, device="auto")
    assert report.proven_by.startswith("plain torch") and report.check("fused layer").idle
    assert report.check("fused layer").examined == 0 and report.check("fused layer").passed
    with pytest.raises(RecipeError, match="the sm_90a kernels multiply W4AFP8, this is MXFP4"):
        validate(out, device="cuda")


def test_damage_is_found(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, name = toy(), "model.layers.1.mlp.experts.2.up_proj"
    changes: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
        "a NaN exponent": ("weight_scale", lambda t: t[3, 1:2].fill_(255), "finite"),
        "an exponent too high": ("weight_scale", lambda t: t.add_(1), "expert weights"),
        "nibbles the other way round": ("weight_packed", lambda t: t.copy_(t << 4 | t >> 4), "expert weights"),
        "one nibble": ("weight_packed", lambda t: t[5, 5:6].bitwise_xor_(7), "nearest codes"),
        "one code for all": ("weight_packed", lambda t: t.fill_(0x11), "codes"),
    }
    quantize(source, small_recipe(scheme="MXFP4"), tmp_path / "sound")
    for i, (what, (suffix, change, check)) in enumerate(changes.items()):
        out = Path(shutil.copytree(tmp_path / "sound", tmp_path / str(i)))
        edit(out, f"{name}.{suffix}", change)
        found = failed(out, source)
        assert check in found and "digests" in found, (what, found)


def test_it_converts_there_and_back_and_evaluates_to_the_same_numbers(
    toy: Toy, small_recipe: Small, tmp_path: Path
) -> None:
    source, out = toy(), tmp_path / "out"
    quantize(source, small_recipe("awq", FOLDS_ALONE, scheme="MXFP4"), out)
    conversion.run(conversion.prepare(out, DEEPSEEK_MX, tmp_path / "there", 0.0002))
    conversion.run(conversion.prepare(tmp_path / "there", CT_MX, tmp_path / "back", 0.0002))
    for path in out.glob("model-*.safetensors"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads((out / "config.json").read_text())
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": "the quick brown fox " * 40}) for _ in range(4)))
    one, other = evaluate_many(
        [(out, "token"), (tmp_path / "there", "token")], source, tmp_path / "text.jsonl", sequences=2, sequence=32
    )
    assert one.kl == other.kl > 0
    conversion.run(conversion.prepare(tmp_path / "there", "deepseek_fp8", tmp_path / "fp8", 0.0002))
    (folded,) = evaluate_many([(tmp_path / "fp8", "token")], source, tmp_path / "text.jsonl", sequences=2, sequence=32)
    assert folded.kl == one.kl, "FP8 blocks hold the same numbers"


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    from w4afp8.errors import Stopped

    source, recipe = toy(), small_recipe("awq", FOLDS_ALONE, scheme="MXFP4", compute={"survey": "none"})
    quantize(source, recipe, tmp_path / "whole")
    asked = iter([False] * 2 + [True] * 99)
    with pytest.raises(Stopped):
        pipeline.run(pipeline.prepare(source, recipe, tmp_path / "parts"), stop=lambda: next(asked))
    assert not (tmp_path / "parts" / "config.json").exists()
    quantize(source, recipe, tmp_path / "parts")
    for path in (tmp_path / "whole").glob("model-*.safetensors"):
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_what_does_not_go_together_is_refused(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    wrong = small_recipe(scheme="MXFP4", output={"format": "sglang_w4afp8"})
    with pytest.raises(RecipeError, match=r"scheme: MXFP4 and output.format: sglang_w4afp8 do not go together"):
        pipeline.prepare(source, wrong, out)
    with pytest.raises(RecipeError, match="do not go together"):
        pipeline.prepare(source, small_recipe(output={"format": CT_MX}), out)
    quantize(source, small_recipe(scheme="MXFP4"), out)
    with pytest.raises(RecipeError, match=r"stand in compressed_tensors_mxfp4, 4 bits already.*w4afp8 convert"):
        pipeline.prepare(out, small_recipe(scheme="MXFP4", output={"format": DEEPSEEK_MX}), tmp_path / "again")
