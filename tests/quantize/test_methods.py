"""Every method, by the common tests: same numbers every time, codes in range, scales that consumers read exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from w4afp8 import quantize
from w4afp8.errors import QuantizationError
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.feedforward import intermediate, swiglu
from w4afp8.numerics import groups
from w4afp8.quantize._evidence import check, measure
from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights, Method
from w4afp8.recipes._recipe import MethodChoice

METHODS = quantize.names()
H, I = 256, 128


def make(name: str, **options: Any) -> Method:
    return quantize.make(MethodChoice(name=name, options=options))


def expert(seed: int = 0) -> ExpertWeights:
    g = torch.Generator().manual_seed(seed)
    gate, up = (torch.randn(I, H, generator=g) / 16 for _ in range(2))
    down = torch.randn(H, I, generator=g) / 11
    down[:, :3] *= 8
    return ExpertWeights(gate, up, down)


def inputs(n: int = 300, seed: int = 0) -> ExpertInputs:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 20, generator=g) @ torch.randn(20, H, generator=g) / 4 + torch.randn(n, H, generator=g)
    x[:, :2] *= 10
    return ExpertInputs(x, torch.rand(n, generator=g) + 0.05, n)


def projections(result: ExpertResult) -> tuple[GroupWeight, GroupWeight, GroupWeight]:
    return result.gate, result.up, result.down


def output(result: ExpertResult, x: Tensor) -> Tensor:
    return swiglu(x, result.gate.dequantize(), result.up.dequantize(), result.down.dequantize())


@pytest.mark.parametrize("name", METHODS)
def test_the_same_inputs_give_the_same_bytes(name: str) -> None:
    first, second = (make(name).quantize(expert(), inputs()) for _ in range(2))
    for one, other in zip(projections(first), projections(second)):
        assert torch.equal(one.codes_NK, other.codes_NK)
        assert torch.equal(one.scale_NG, other.scale_NG)
    assert first.evidence == second.evidence


@pytest.mark.parametrize("name", METHODS)
def test_codes_are_in_range_and_scales_are_positive_bf16(name: str) -> None:
    result = make(name).quantize(expert(), inputs())
    for weight, (n, k) in zip(projections(result), ((I, H), (I, H), (H, I))):
        assert weight.codes_NK.dtype == torch.int8
        assert weight.codes_NK.shape == (n, k)
        assert weight.scale_NG.shape == (n, k // 128)
        assert weight.codes_NK.min() >= -8 and weight.codes_NK.max() <= 7
        assert (weight.scale_NG > 0).all() and torch.isfinite(weight.scale_NG).all()
        assert torch.equal(groups.round_to_bf16(weight.scale_NG), weight.scale_NG)
        check("x", weight)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_and_weights_are_left_as_they_were(name: str) -> None:
    weights, given = expert(), inputs()
    before = [t.clone() for t in (weights.gate_IH, weights.up_IH, weights.down_HI, given.x_nH, given.weight_n)]
    make(name).quantize(weights, given)
    for tensor, copy in zip((weights.gate_IH, weights.up_IH, weights.down_HI, given.x_nH, given.weight_n), before):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("name", METHODS)
def test_a_quantized_expert_still_computes_the_expert(name: str) -> None:
    """A swapped projection or a fold that is not undone would miss by far more than the rounding."""
    weights, given = expert(), inputs()
    result = make(name).quantize(weights, given)
    expected = swiglu(given.x_nH, weights.gate_IH, weights.up_IH, weights.down_HI)
    difference = (output(result, given.x_nH) - expected).norm() / expected.norm()
    assert difference < 0.5
    h = intermediate(given.x_nH, result.gate.dequantize(), result.up.dequantize())
    h = h if result.down_fold_I is None else h * result.down_fold_I
    source = intermediate(given.x_nH, weights.gate_IH, weights.up_IH)
    assert (h - source).norm() / source.norm() < 0.3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "case", ["no tokens", "one token", "zero tokens' inputs", "zero weights", "zero down", "equal rows"]
)
def test_starved_and_degenerate_experts_are_quantized_to_finite_numbers(name: str, case: str) -> None:
    weights, given = expert(), inputs()
    if case == "no tokens":
        given = ExpertInputs(torch.zeros(0, H), torch.zeros(0), 0)
    elif case == "one token":
        given = ExpertInputs(given.x_nH[:1], given.weight_n[:1], 1)
    elif case == "zero tokens' inputs":
        given = ExpertInputs(torch.zeros(10, H), torch.zeros(10), 10)
    elif case == "zero weights":
        weights = ExpertWeights(*(torch.zeros_like(w) for w in (weights.gate_IH, weights.up_IH, weights.down_HI)))
    elif case == "zero down":
        weights = ExpertWeights(weights.gate_IH, weights.up_IH, torch.zeros(H, I))
    else:
        weights = ExpertWeights(torch.full((I, H), 0.01), torch.full((I, H), -0.02), torch.full((H, I), 0.5))
    result = make(name).quantize(weights, given)
    for weight in projections(result):
        check(case, weight)
        assert torch.isfinite(weight.dequantize()).all()
        assert weight.codes_NK.min() >= -8 and weight.codes_NK.max() <= 7
    errors, amax = measure(weights, given, result, None)
    assert all(torch.isfinite(torch.tensor(list(site.values()))).all() for site in errors.values())
    assert amax >= 0


def test_awq_beats_plain_rounding_on_tokens_it_did_not_see() -> None:
    weights = expert()
    everything = inputs(1400)
    seen = ExpertInputs(everything.x_nH[:1000], everything.weight_n[:1000], 1000)
    held_out = everything.x_nH[1000:]
    expected = swiglu(held_out, weights.gate_IH, weights.up_IH, weights.down_HI)
    found = {
        name: (output(make(name).quantize(weights, seen), held_out) - expected).norm().item() for name in ("rtn", "awq")
    }
    assert found["awq"] < 0.8 * found["rtn"]


@pytest.mark.parametrize("option", ["fold_down", "feedback", "fold_norm"])
def test_each_part_of_awq_can_be_turned_off(option: str) -> None:
    result = make("awq", **{option: False}, rounds=1).quantize(expert(), inputs())
    for weight in projections(result):
        check(option, weight)
    if option == "fold_down":
        assert result.down_fold_I is None


def test_a_down_fold_is_kept_where_it_pays_and_recorded() -> None:
    result = make("awq").quantize(expert(), inputs())  # three columns of `down` are eight times the others
    assert result.down_fold_I is not None
    assert (result.down_fold_I > 0).all() and torch.isfinite(result.down_fold_I).all()
    assert result.evidence["fold_alpha"] is not None
    stubborn = make("awq", min_gain=0.99).quantize(expert(), inputs())
    assert stubborn.down_fold_I is None and stubborn.evidence["fold_alpha"] is None


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-42])
def test_no_bad_scale_passes_the_gate(bad: float) -> None:
    scale = torch.ones(2, 1)
    scale[1, 0] = bad
    with pytest.raises(QuantizationError, match=r"model.x: the scale of row 1, group 0 is"):
        check("model.x", GroupWeight(torch.zeros(2, 128, dtype=torch.int8), scale))


def test_measured_errors_are_relative_mean_squares() -> None:
    weights, given = expert(), inputs(50)
    result = make("rtn").quantize(weights, given)
    errors, amax = measure(weights, given, result, None)
    y = swiglu(given.x_nH, weights.gate_IH, weights.up_IH, weights.down_HI)
    expected = ((output(result, given.x_nH) - y).square().sum() / y.square().sum()).item()
    assert errors["down"]["chosen"] == pytest.approx(expected, rel=1e-4)
    assert errors["down"]["chosen"] == errors["down"]["rtn"]
    h = intermediate(given.x_nH, result.gate.dequantize(), result.up.dequantize())
    assert amax == pytest.approx(h.abs().max().item())
