"""The grouped GEMM and the static scales: each can disagree, and then says where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors
from torch import Tensor

from w4afp8.formats._spec import GroupWeight
from w4afp8.validate import validate
from w4afp8.validate.gemm import GEMM_ERROR, beyond_rounding
from w4afp8.validate.sides import Side


def test_the_op_equals_float64(quantized: Path) -> None:
    report = validate(quantized)
    check = report.check("grouped GEMM")
    assert check.passed and check.examined == 4 * 16 * 2
    assert all(0 <= error < GEMM_ERROR for layer in report.layers for error in layer.gemm.values())
    assert {site for layer in report.layers for site in layer.gemm} == {"gate_up", "down"}


def test_a_reader_that_disagrees_with_the_op_is_found(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Side.group_weight

    def one_row_off(side: Side, name: str) -> GroupWeight:
        weight = honest(side, name)
        if name == "model.layers.2.mlp.experts.0.down_proj.weight":
            weight.scale_NG[5] *= 1.5
        return weight

    monkeypatch.setattr(Side, "group_weight", one_row_off)
    problems = validate(quantized, sample=1).check("grouped GEMM").problems
    assert [problem.who for problem in problems] == ["model.layers.2.mlp.experts.0 down"]


@pytest.mark.parametrize(("scale", "word"), [(0.001, "beyond 448"), (3000.0, "far too large")])
def test_a_static_scale_of_the_wrong_size_is_found(copy: Path, scale: float, word: str) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("model.layers.2.") and ".w2." not in name:
                tensor.fill_(scale)

    edit_tensors(copy, "act_scales.safetensors", edit)
    (problem,) = validate(copy, sample=1).check("static activations").problems
    assert problem.who == "model.layers.2.mlp.experts.0.w1.input_scale" and word in str(problem)


def test_without_recorded_inputs_the_product_is_still_tested(copy: Path) -> None:
    (copy / "w4afp8/inputs.safetensors").unlink()
    report = validate(copy, sample=1)
    assert report.check("grouped GEMM").passed and report.check("grouped GEMM").examined == 8
    assert report.check("static activations").skipped
    assert {layer.inputs for layer in report.layers} == {"synthetic"}


def test_rounding_itself_is_no_error():
    exact = torch.randn(64, 64, dtype=torch.float64)
    assert beyond_rounding(exact.bfloat16(), exact) == 0
    assert beyond_rounding((exact * 1.01).bfloat16(), exact) > GEMM_ERROR
    dominated = torch.full((4, 4), 1.00389, dtype=torch.float64) * torch.eye(4) * 1e6
    assert beyond_rounding(dominated.bfloat16(), dominated) == 0
