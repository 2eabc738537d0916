"""What is no expert: the source's bytes, or a fold that computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, file_of, fold_layer, write_json

from w4afp8.validate import ValidationReport, validate

PREFIX = "model.layers.2."
NORM = f"{PREFIX}post_attention_layernorm.weight"
ROUTER = f"{PREFIX}mlp.gate.weight"
SHARED = f"{PREFIX}mlp.shared_experts.up_proj.weight"


def scaled(folder: Path, name: str, factor: float) -> None:
    def edit(tensors: dict) -> None:
        tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)

    edit_tensors(folder, file_of(folder, name), edit)


def named(report: ValidationReport, check: str) -> list[str]:
    return [problem.who for problem in report.check(check).problems]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.o_proj.weight_scale_inv", NORM, ROUTER])
def test_one_flipped_byte_is_found(copy: Path, miniature: Path, name: str) -> None:
    def flip(tensors: dict) -> None:
        tensors[name].view(torch.uint8).flatten()[100 % tensors[name].numel()] ^= 1

    edit_tensors(copy, file_of(copy, name), flip)
    assert named(validate(copy, miniature, sample=1), "carried") == [name]


def test_a_recorded_fold_passes(copy: Path, miniature: Path) -> None:
    fold_layer(miniature, copy, 2)
    report = validate(copy, miniature)
    assert report.passed, [str(problem) for problem in report.problems]
    assert report.proven or report.check("digests").skipped
    assert report.check("folds").examined == 3
    assert next(layer for layer in report.layers if layer.layer == 2).routing_moved == 0.0


def test_a_fold_that_is_not_recorded_is_refused(copy: Path, miniature: Path) -> None:
    fold_layer(miniature, copy, 2)
    record = json.loads((copy / "w4afp8/record.json").read_text())
    write_json(copy / "w4afp8/record.json", {**record, "layers": []})
    assert {NORM, ROUTER, SHARED} <= set(named(validate(copy, miniature, sample=1), "carried"))


@pytest.mark.parametrize("name", [ROUTER, SHARED])
def test_a_fold_that_changes_the_function_is_refused(copy: Path, miniature: Path, name: str) -> None:
    fold_layer(miniature, copy, 2)
    scaled(copy, name if name == ROUTER else f"{name}_scale_inv", 1.1)
    report = validate(copy, miniature, sample=1)
    assert named(report, "folds") == [name] and not named(report, "carried")


def test_a_fold_with_one_wrong_channel_is_refused(copy: Path, miniature: Path) -> None:
    fold_layer(miniature, copy, 2)

    def edit(tensors: dict) -> None:
        tensors[NORM][17] *= 2

    edit_tensors(copy, file_of(copy, NORM), edit)
    report = validate(copy, miniature, sample=1)
    assert ROUTER in named(report, "folds") and "column 17" in str(report.check("folds").problems[0])


def test_a_tensor_of_another_shape_is_no_crash(copy: Path, miniature: Path) -> None:
    name = "model.layers.0.input_layernorm.weight"
    edit_tensors(copy, file_of(copy, name), lambda t: t.update({name: t[name].float()}))
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["metadata"]["total_size"] += 2 * 256
    write_json(copy / "model.safetensors.index.json", index)
    assert named(validate(copy, miniature, sample=1), "carried") == [name]
