"""A whole run: what it writes, that its bytes depend on nothing else, that every reader reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outputs import read_all, run, tree
from w4afp8 import formats, quantize
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.quantize._grid import INT4
from w4afp8.recipes._recipe import Recipe
from w4afp8.terminal.inspect_view import inspect_json
from w4afp8.validate import validate

Toy = Callable[..., Path]
Small = Callable[..., Recipe]


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


@pytest.mark.parametrize("survey", ["none", "values"])
def test_the_survey_can_be_shortened(toy: Toy, small_recipe: Small, tmp_path: Path, survey: str) -> None:
    events: list[str] = []
    run(toy(), small_recipe(compute={"survey": survey}), tmp_path / "out", listener=lambda e: events.append(e["event"]))
    assert ("surveyed" in events, "covered" in events) == (survey == "values", False)


def test_a_bf16_source_becomes_a_checkpoint_that_validate_proves(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source = toy(dtype="bf16")
    run(source, small_recipe("awq"), tmp_path / "out")
    report = validate(tmp_path / "out", source)
    assert report.proven, [str(problem) for problem in report.problems]
    with CheckpointReader(tmp_path / "out") as written:
        assert written.specs["model.layers.1.self_attn.o_proj.weight"].dtype == "F8_E4M3"
        assert written.specs["model.layers.1.mlp.gate.weight"].dtype == "BF16"
