"""The grouped GEMM and the static scales: each can disagree, and then says where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors
from torch import Tensor

from w4afp8.checkpoint.header import read_header
from w4afp8.errors import DeviceError, RecipeError
from w4afp8.formats._spec import GroupWeight
from w4afp8.validate import fused, validate
from w4afp8.validate.fused import LAYER_ERROR
from w4afp8.validate.products import GEMM_ERROR, beyond_rounding
from w4afp8.validate.sides import Inputs, Side


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


def test_the_fused_layer_is_the_float64_layer(quantized: Path) -> None:
    report = validate(quantized)
    check = report.check("fused layer")
    assert check.passed and check.examined == 4
    assert all(layer.fused is not None and 0 <= layer.fused < 1e-4 for layer in report.layers)


@pytest.mark.parametrize("lie", ["another expert", "a weight too large", "gate and up swapped"])
def test_a_layer_that_disagrees_is_found(quantized: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    honest = fused.exact_sum

    def lying(x: Tensor, ids: Tensor, weights: Tensor, gate_up: list[GroupWeight], down: list[GroupWeight],
              static: fused.Static | None) -> Tensor:  # fmt: skip
        if lie == "another expert":
            ids = torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids))
        elif lie == "a weight too large":
            weights = weights * torch.tensor([1.1, 1, 1, 1])
        else:
            half = len(gate_up[0].codes_NK) // 2
            turned = GroupWeight(gate_up[0].codes_NK.roll(half, 0), gate_up[0].scale_NG.roll(half, 0))
            gate_up = [turned, *gate_up[1:]]
        return honest(x, ids, weights, gate_up, down, static)

    monkeypatch.setattr(fused, "exact_sum", lying)
    problems = validate(quantized).check("fused layer").problems
    assert [problem.who for problem in problems] == [f"layer {layer}, experts 0 to 15" for layer in range(1, 5)]


def test_experts_outside_a_batch_have_no_place() -> None:
    ids = torch.tensor([[3, 7], [5, 0]])
    inputs = Inputs(torch.zeros(2, 4), ids, torch.ones(2, 2), True)
    assert fused.local_ids(inputs, [5, 3]).tolist() == [[1, -1], [0, -1]]
    assert fused.local_ids(inputs, [9]).tolist() == [[-1, -1], [-1, -1]]


def test_the_report_says_what_proved_it(quantized: Path) -> None:
    assert validate(quantized, sample=1).to_json()["proven_by"] == f"plain torch {torch.__version__} on the CPU"
    with pytest.raises(DeviceError, match=r"validate --device cuda: found"):
        validate(quantized, device="cuda")
    with pytest.raises(RecipeError, match="expected one of auto, cuda, cpu"):
        validate(quantized, device="tpu")


@pytest.mark.gpu
def test_the_kernels_prove_what_plain_torch_proves(quantized: Path, miniature: Path) -> None:
    on_gpu, on_cpu = (validate(quantized, miniature, device=device) for device in ("auto", "cpu"))
    assert not on_gpu.problems and on_gpu.proven_by.startswith("sm_90a kernels on NVIDIA H")
    assert [(c.name, c.passed, c.examined) for c in on_gpu.checks] == [
        (c.name, c.passed, c.examined) for c in on_cpu.checks
    ]
    assert on_gpu.histograms == on_cpu.histograms
    for ours, theirs in zip(on_gpu.layers, on_cpu.layers, strict=True):
        assert 0 < ours.gemm["down"] < GEMM_ERROR and 0 < (ours.fused or 0) < LAYER_ERROR
        for a, b in zip(ours.experts, theirs.experts, strict=True):
            assert a.output_error == pytest.approx(b.output_error, rel=1e-4)
            assert a.weight_error == pytest.approx(b.weight_error, rel=1e-4)


@pytest.mark.gpu
def test_a_damaged_scale_is_found_on_the_gpu(copy: Path, miniature: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("experts.3.down_proj.weight_scale_inv"))
        tensors[name][7] *= 8

    shard = next(p.name for p in sorted(copy.glob("model*.safetensors")) if edits(p, edit_name="experts.3.down_proj"))
    edit_tensors(copy, shard, edit)
    report = validate(copy, miniature, device="cuda")
    assert not report.passed and any("experts.3.down_proj" in problem.who for problem in report.problems)


def edits(path: Path, edit_name: str) -> bool:
    return any(edit_name in spec.name and spec.name.endswith("scale_inv") for spec in read_header(path)[0])
