"""A whole run on a toy: what it writes, what it refuses before it writes, and the same bytes every time."""

from __future__ import annotations

import errno
import json
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

from w4afp8 import formats, pipeline, quantize
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert import resources
from w4afp8.errors import CalibrationError, CheckpointError, QuantizationError, RecipeError, ResourceError, ResumeError
from w4afp8.quantize._grid import INT4
from w4afp8.recipes._recipe import Recipe
from w4afp8.terminal.inspect_view import inspect_json
from w4afp8.validate import validate

Toy = Callable[..., Path]
Small = Callable[..., Recipe]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the event log, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.jsonl"
    }


def read_all(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(folder / file)
    assert found.keys() == index["weight_map"].keys()
    return found


def run(source: Path, recipe: Recipe, out: Path, **more: Any) -> dict[str, Any]:
    return pipeline.run(pipeline.prepare(source, recipe, out), **more)


@pytest.mark.parametrize("method", quantize.names())
def test_a_run_writes_a_checkpoint_that_every_reader_reads(
    toy: Toy, small_recipe: Small, tmp_path: Path, method: str
) -> None:
    source, out = toy(), tmp_path / "out"
    events: list[dict[str, Any]] = []
    record = run(source, small_recipe(method), out, listener=events.append)
    before, after = read_all(source), read_all(out)
    assert (
        inspect_json(out, False)["bytes"]
        == json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    )
    folded = {name for layer in record["layers"] for name in layer["folded"]}
    fmt = formats.get("sglang_w4afp8")
    for name, tensor in after.items():
        if name.endswith("input_scale"):
            assert tensor.dtype == torch.float32 and tensor.shape == (1,) and 0 < tensor.item() < math.inf
            assert tensor.bfloat16().float().item() == tensor.item()
        elif ".mlp.experts." not in name:
            same = torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
            assert same or name in folded, name
        elif name.endswith(".weight"):
            scale = after[f"{name}_scale_inv"]
            assert (scale > 0).all() and torch.equal(scale.bfloat16().float(), scale)
            weight = fmt.unpack({".weight": tensor, ".weight_scale_inv": scale})
            assert weight.dequantize().shape == before[name].shape
    for layer in (1, 2, 3):
        for short in ("w1", "w2", "w3"):
            values = {after[f"model.layers.{layer}.mlp.experts.{e}.{short}.input_scale"].item() for e in range(4)}
            assert len(values) == 1, "one number per layer and GEMM"
        stem = f"model.layers.{layer}.mlp.experts.0"
        assert after[f"{stem}.w1.input_scale"] == after[f"{stem}.w3.input_scale"]
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "w4afp8"
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert [e["event"] for e in events if e["event"] != "progress"] == [
        "surveyed", "covered", "start", *["unit"] * 5, "done",
    ]  # fmt: skip
    assert not [name for name in tree(out) if "partial" in name or "state" in name]


def test_plain_rounding_is_plain_rounding_of_every_expert(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    run(source, small_recipe("rtn"), out)
    before, after = read_all(source), read_all(out)
    fp8, int4 = formats.get("deepseek_fp8"), formats.get("sglang_w4afp8")
    names = [n for n in before if ".mlp.experts." in n and n.endswith(".weight")]
    assert len(names) == 3 * 4 * 3
    for name in names:
        real = fp8.unpack({".weight": before[name], ".weight_scale_inv": before[f"{name}_scale_inv"]}).dequantize()
        for suffix, tensor in int4.pack(INT4.round_to_nearest(real)).items():
            assert torch.equal(after[name.removesuffix(".weight") + suffix], tensor)


@pytest.mark.parametrize("method", quantize.names())
def test_the_same_run_gives_the_same_bytes(toy: Toy, small_recipe: Small, tmp_path: Path, method: str) -> None:
    source = toy()
    for name in "ab":
        run(source, small_recipe(method), tmp_path / name)
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert str(tmp_path).encode() not in b"".join(first.values()), "no path of this machine in the output"


def test_the_record_says_what_was_done(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(toy(), small_recipe("awq"), out)
    assert json.loads((out / "w4afp8" / "record.json").read_text()) == json.loads(json.dumps(record))
    assert record["bits_per_weight"] == pytest.approx(4.25)
    assert [layer["layer"] for layer in record["layers"]] == [1, 2, 3]
    assert record["digests"].keys() == set(read_all(out)) - {n for n in read_all(out) if n.endswith("input_scale")}
    inputs = load_file(out / "w4afp8" / "inputs.safetensors")
    assert {key.split(".")[-1] for key in inputs} == {"x", "experts", "weights"}


def test_another_source_name_or_sharding_gives_the_same_weights(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    run(toy("one"), small_recipe("rtn"), tmp_path / "a")
    run(toy("two", shard_gb=1.0), small_recipe("rtn"), tmp_path / "b")
    first, second = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    assert all(torch.equal(t.view(torch.uint8), second[n].view(torch.uint8)) for n, t in first.items())


def test_mtp_can_be_dropped_whole(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(toy(), small_recipe("rtn", mtp="drop"), out)
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert not [n for n in read_all(out) if ".layers.3." in n]
    assert record["mtp"] == "drop"
    assert inspect_json(out, False)["mtp_layers"] == 0


@pytest.mark.parametrize("changes", [{"num_nextn_predict_layers": 0}, {"q_lora_rank": None},
                                     {"first_k_dense_replace": 0}, {"num_nextn_predict_layers": 2}])  # fmt: skip
def test_other_shapes_of_the_family_run_too(
    toy: Toy, small_recipe: Small, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(toy(**changes), small_recipe("rtn"), tmp_path / "out")
    inspect_json(tmp_path / "out", True)


def test_a_bf16_source_runs(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    run(toy(dtype="bf16"), small_recipe("rtn"), tmp_path / "out")
    inspect_json(tmp_path / "out", False)


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


@pytest.mark.parametrize("survey", ["none", "values"])
def test_the_survey_can_be_shortened(toy: Toy, small_recipe: Small, tmp_path: Path, survey: str) -> None:
    events: list[str] = []
    run(toy(), small_recipe(compute={"survey": survey}), tmp_path / "out", listener=lambda e: events.append(e["event"]))
    assert ("surveyed" in events, "covered" in events) == (survey == "values", False)


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


def test_a_bf16_source_becomes_a_checkpoint_that_validate_proves(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source = toy(dtype="bf16")
    run(source, small_recipe("awq"), tmp_path / "out")
    report = validate(tmp_path / "out", source)
    assert report.proven, [str(problem) for problem in report.problems]
    with CheckpointReader(tmp_path / "out") as written:
        assert written.specs["model.layers.1.self_attn.o_proj.weight"].dtype == "F8_E4M3"
        assert written.specs["model.layers.1.mlp.gate.weight"].dtype == "BF16"


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
