"""Structure: every lie of an index or a header is found, and the tensor or file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, file_of, write_json

from w4afp8.validate import validate

INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.2.mlp.experts.5.up_proj.weight"
SCALE = f"{EXPERT}_scale_inv"
ROUTER = "model.layers.1.mlp.gate.weight"
ACTIVATION = "model.layers.3.mlp.experts.7.w2.input_scale"


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    write_json(folder / INDEX, index)


def drop_tensor(folder: Path, name: str) -> None:
    """From its file and from the index, with the total size mended: only the expectation can miss it."""
    file, gone = file_of(folder, name), 0

    def drop(tensors: dict) -> None:
        nonlocal gone
        tensor = tensors.pop(name)
        gone = tensor.numel() * tensor.element_size()

    edit_tensors(folder, file, drop)

    def mend(index: dict) -> None:
        del index["weight_map"][name]
        index["metadata"]["total_size"] -= gone

    edit_index(folder, mend)


def add_tensor(folder: Path) -> None:
    edit_tensors(folder, "model-00001-of-00002.safetensors", lambda t: t.update({"stray.weight": torch.ones(3)}))

    def mend(index: dict) -> None:
        index["weight_map"]["stray.weight"] = "model-00001-of-00002.safetensors"
        index["metadata"]["total_size"] += 12

    edit_index(folder, mend)


def hold_twice(folder: Path) -> None:
    other = "model-00001-of-00002.safetensors"
    assert file_of(folder, ROUTER) == other or file_of(folder, EXPERT) != other
    name = ROUTER if file_of(folder, ROUTER) != other else EXPERT
    edit_tensors(folder, "act_scales.safetensors", lambda t: t.update({name: torch.ones(2)}))


def change_dtype(folder: Path, name: str, dtype: torch.dtype) -> None:
    edit_tensors(folder, file_of(folder, name), lambda t: t.update({name: t[name].to(dtype)}))


def test_a_whole_directory_passes(quantized: Path) -> None:
    report = validate(quantized, sample=1)
    assert report.passed, [str(problem) for problem in report.problems]
    assert not report.proven, "nothing was compared with a source"


@pytest.mark.parametrize(
    ("damage", "check", "named"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "index", "model-00002-of-00002.safetensors"),
        (lambda f: shutil.copyfile(f / "act_scales.safetensors", f / "odd.safetensors"), "index", "odd.safetensors"),
        (lambda f: edit_index(f, lambda i: i["metadata"].update(total_size=5)), "index", "total_size"),
        (lambda f: edit_index(f, lambda i: i["metadata"].pop("total_size")), "index", "total_size"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update(ghost="act_scales.safetensors")), "index", "ghost"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].pop(ROUTER)), "index", ROUTER),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update({ROUTER: "../x.safetensors"})), "index", "../x"),
        (lambda f: edit_index(f, lambda i: i.update(weight_map=[])), "index", "weight_map"),
        (hold_twice, "index", "one file"),
        (lambda f: drop_tensor(f, EXPERT), "tensors", EXPERT),
        (lambda f: drop_tensor(f, SCALE), "tensors", EXPERT),
        (lambda f: drop_tensor(f, ROUTER), "tensors", ROUTER),
        (lambda f: drop_tensor(f, ACTIVATION), "tensors", ACTIVATION),
        (add_tensor, "tensors", "stray.weight"),
        (lambda f: change_dtype(f, SCALE, torch.bfloat16), "tensors", EXPERT),
        (lambda f: change_dtype(f, ACTIVATION, torch.int32), "tensors", ACTIVATION),
        (lambda f: (f / "model-00001-of-00002.safetensors.partial").touch(), "finished", ".partial"),
        (lambda f: (f / "config.json").unlink(), "finished", "config.json"),
        (lambda f: (f / INDEX).unlink(), "finished", INDEX),
    ],
)
def test_damage_is_found_and_named(copy: Path, damage: Callable[[Path], object], check: str, named: str) -> None:
    damage(copy)
    report = validate(copy, sample=1)
    assert not report.passed
    assert any(named in str(problem) for problem in report.check(check).problems), report.problems


def test_a_truncated_file_is_named(copy: Path) -> None:
    path = copy / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    problems = validate(copy, sample=1).check("index").problems
    assert problems[0].who == path.name and "truncated" in str(problems[0])


def test_a_journal_means_unfinished(copy: Path) -> None:
    (copy / "w4afp8/state").mkdir()
    (copy / "w4afp8/state/fingerprint.json").write_text("{}")
    problems = validate(copy, sample=1).check("finished").problems
    assert "unfinished run" in problems[0].found and problems[0].who == "w4afp8/state"


def test_what_cannot_be_tested_is_said_to_be_skipped(copy: Path) -> None:
    (copy / "model-00002-of-00002.safetensors").unlink()
    report = validate(copy)
    assert report.check("finite").skipped == "the structure is broken"
    assert report.check("grouped GEMM").skipped and not report.proven


def test_many_problems_are_counted_not_listed(copy: Path) -> None:
    edit_index(copy, lambda index: index["weight_map"].update({f"ghost.{i}": ROUTER_FILE for i in range(80)}))
    check = validate(copy, sample=1).check("index")
    assert len(check.problems) == 50 and check.more == 30


ROUTER_FILE = "act_scales.safetensors"
