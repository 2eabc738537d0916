"""Refused before the first byte, or stopped without a half-written one: a run with a bad source or machine."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outputs import read_all, run, tree
from w4afp8 import pipeline, quantize
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert import resources
from w4afp8.errors import CalibrationError, CheckpointError, QuantizationError, RecipeError, ResourceError, ResumeError
from w4afp8.quantize._grid import INT4
from w4afp8.recipes._recipe import Recipe

Toy = Callable[..., Path]
Small = Callable[..., Recipe]


def nothing_was_written(out: Path) -> None:
    assert not out.exists() or not list(out.rglob("*.safetensors")), "something was written before the refusal"
    assert not (out / "config.json").exists()


def test_a_source_with_nan_is_refused_before_anything_is_written(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(shard_gb=1.0), tmp_path / "out"
    shard = next(source.glob("*.safetensors"))
    tensors = load_file(shard)
    tensors["model.layers.2.input_layernorm.weight"][5] = math.nan
    save_file(tensors, shard)
    with pytest.raises(QuantizationError, match=r"model.layers.2.input_layernorm.weight .*element 5 is NaN"):
        run(source, small_recipe(), out)
    assert not out.exists()


def test_a_source_that_is_cut_is_refused_before_anything_is_written(
    toy: Toy, small_recipe: Small, tmp_path: Path
) -> None:
    source, out = toy(), tmp_path / "out"
    shard = sorted(source.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{shard.name} .*truncated"):
        run(source, small_recipe(), out)
    assert not out.exists()


def test_a_cold_expert_is_refused_before_anything_is_written(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(shard_gb=1.0), tmp_path / "out"
    shard = next(source.glob("*.safetensors"))
    tensors = load_file(shard)
    tensors["model.layers.2.mlp.gate.e_score_correction_bias"][3] = -100.0
    save_file(tensors, shard)
    with pytest.raises(CalibrationError, match="layer 2: 1 of 4 experts saw fewer than 1 tokens: expert 3 saw 0"):
        run(source, small_recipe(), out)
    assert not out.exists()
    record = run(source, small_recipe(coverage={"allow_cold": True}), out)
    assert record["layers"][1]["tokens_per_expert"][3] == 0
    assert all(torch.isfinite(t.float()).all() for t in read_all(out).values())


def test_too_small_a_machine_is_refused_before_anything_is_written(
    toy: Toy, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="disk: the output takes"):
        run(toy(), small_recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "nowhere", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(toy: Toy, small_recipe: Small, tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(RecipeError, match=r"compute.device"):
        run(toy(), small_recipe(compute={"device": device}), tmp_path / "out")


def test_directories_of_others_are_never_touched(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    with pytest.raises(CheckpointError, match="is the source itself"):
        run(source, small_recipe(), source)
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    for resume in pipeline.Resume:
        with pytest.raises(ResumeError, match="is not empty and holds no unfinished run of ours"):
            run(source, small_recipe(), out, resume=resume)
    assert tree(out) == {"diary.txt": b"mine"}
    (out / "diary.txt").unlink()
    run(source, small_recipe(), out)
    before = tree(out)
    for resume in pipeline.Resume:
        with pytest.raises(ResumeError, match="holds a finished checkpoint"):
            run(source, small_recipe(), out, resume=resume)
    assert tree(out) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResumeError, match="is a file"):
        run(source, small_recipe(), tmp_path / "file")


def test_a_full_disk_loses_nothing(
    toy: Toy, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC in the middle: no config, no half shard under a final name, the same command goes on to the same bytes."""
    source, out = toy(), tmp_path / "out"
    run(source, small_recipe(), tmp_path / "whole")
    write, left = os.pwrite, [60]

    def full(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        run(source, small_recipe(), out)
    monkeypatch.undo()
    assert not (out / "config.json").exists() and not (out / "model.safetensors.index.json").exists()
    with pytest.raises(CheckpointError):
        CheckpointReader(out)
    run(source, small_recipe(), out)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("method", quantize.names())
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.layers.1.post_attention_layernorm.weight", "the inputs of layer 1's experts"),
        ("model.layers.1.mlp.gate.weight", "the routing of layer 1"),
        ("model.layers.2.mlp.gate.e_score_correction_bias", "the routing of layer 2"),
        ("model.layers.1.mlp.experts.1.up_proj.weight_scale_inv", "model.layers.1.mlp.experts.1.up_proj.weight"),
        ("model.layers.2.mlp.experts.3.down_proj.weight", "model.layers.2.mlp.experts.3.down_proj.weight"),
        ("model.layers.0.mlp.down_proj.weight", "the inputs of layer 1's experts"),
    ],
)
def test_a_run_that_skips_the_survey_still_stops_at_nan(
    toy: Toy, small_recipe: Small, tmp_path: Path, method: str, name: str, says: str
) -> None:
    source, out = toy(shard_gb=1.0), tmp_path / "out"
    shard = next(source.glob("*.safetensors"))
    tensors = load_file(shard)
    if tensors[name].dtype == torch.float8_e4m3fn:
        tensors[name].view(torch.uint8).view(-1)[3] = 0x7F
    else:
        tensors[name].view(-1)[0] = math.nan
    save_file(tensors, shard)
    with pytest.raises(QuantizationError, match=f"^{says}: NaN, infinity or beyond float32"):
        run(source, small_recipe(method, compute={"survey": "none"}), out)
    assert not (out / "config.json").exists()


def test_a_bad_number_of_a_method_is_not_written(
    toy: Toy, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w4afp8.formats._spec import GroupWeight

    plain = INT4.round_to_nearest

    def broken(weight: Tensor) -> GroupWeight:
        good = plain(weight)
        good.scale_NG[0, 0] = math.nan
        return good

    monkeypatch.setattr(INT4, "round_to_nearest", broken)
    with pytest.raises(
        QuantizationError, match=r"model.layers.1.mlp.experts.0.gate_proj.weight: the scale of row 0, group 0"
    ):
        run(toy(), small_recipe(compute={"survey": "none"}), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
