"""Scales and codes under a Gram matrix: each step may only lower the error that it claims to lower."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.numerics import distance, groups
from w4afp8.quantize import _gram, _rounding, _scales
from w4afp8.quantize._grid import INT4

Golden = Callable[[str], dict[str, Tensor]]
SEEDS = st.integers(0, 2**31)
SEVERAL = 12  # of whole matrices drawn anew: one seed is as good as another


def problem(seed: int, n: int = 6, k: int = 256, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Weights with outlier columns and a damped Gram of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=g) * torch.rand(n, 1, generator=g)
    weight[:, torch.randint(0, k, (4,), generator=g)] *= 6
    x = torch.randn(tokens, 24, generator=g) @ torch.randn(24, k, generator=g) + torch.randn(tokens, k, generator=g)
    return weight, _gram.damp(_gram.gram(x * (torch.rand(k, generator=g) + 0.1)), 0.01)


def error(weight: Tensor, gram: Tensor, codes: Tensor, scale: Tensor) -> float:
    return distance.gram_error((groups.decode(codes, scale) - weight).double(), gram.double())


def is_bf16(scale: Tensor) -> bool:
    return torch.equal(groups.round_to_bf16(scale), scale)


@given(SEEDS)
def test_plain_rounding_costs_at_most_half_a_step_where_nothing_saturates(seed: int) -> None:
    weight, _ = problem(seed)
    q = INT4.round_to_nearest(weight)
    step = groups.expand(q.scale_NG)
    difference = (q.dequantize() - weight).abs()
    inside = (weight <= 7.5 * step) & (weight >= -8.5 * step)
    assert (difference[inside] <= 0.5 * step[inside] * 1.000001).all()
    # amax/7.5 rounded to bf16: the largest lie at most 2^-8 beyond 7.5 steps, and 7 is the last positive code.
    assert (difference <= 0.54 * step).all()
    assert inside.float().mean() > 0.99


def test_plain_rounding_takes_compressed_tensors_scale(golden_tensors: Golden) -> None:
    """compressed-tensors 0.20: amax/7.5; it keeps float32 where we keep the bf16 that consumers read."""
    peer = golden_tensors("int4_group_quantize")
    q = INT4.round_to_nearest(peer["w_bf16"].float())
    alive = peer["amax_div7_f32"] > 0
    assert torch.equal(q.scale_NG[alive], peer["ct_bf16.scale"].float()[alive])
    assert q.scale_NG[~alive].tolist() == [1.0] * int((~alive).sum())
    # Codes differ only where bf16 division (theirs) and float32 division (ours) fall on two sides of a tie.
    apart = (q.codes_NK.int() - peer["ct_bf16.q_int8"].int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).sum() < 40


@pytest.mark.parametrize("fill", [0.0, 1e-30, 3.0, -3.0, 1e30])
def test_equal_rows_of_any_size_are_rounded_to_finite_numbers(fill: float) -> None:
    q = INT4.round_to_nearest(torch.full((2, 256), fill))
    assert torch.isfinite(q.dequantize()).all()
    assert (q.scale_NG > 0).all()
    torch.testing.assert_close(q.dequantize(), torch.full((2, 256), fill), rtol=0.08, atol=0)


@given(SEEDS)
def test_searched_scales_are_never_worse_than_amax_over_seven(seed: int) -> None:
    weight, gram = problem(seed)
    scale = _scales.search(weight, gram)
    assert is_bf16(scale) and (scale > 0).all()
    plain = groups.usable(groups.round_to_bf16(groups.amax(weight) / 7))
    for g in range(2):
        span = slice(g * 128, g * 128 + 128)
        for n in range(len(weight)):
            row, block = weight[n : n + 1, span], gram[span, span]
            found, base = scale[n : n + 1, g : g + 1], plain[n : n + 1, g : g + 1]
            assert error(row, block, groups.round_to_codes(row, found), found) <= 1.00001 * error(
                row, block, groups.round_to_codes(row, base), base
            )


@settings(max_examples=SEVERAL)
@given(SEEDS, st.integers(1, 3))
def test_descent_never_raises_the_error(seed: int, sweeps: int) -> None:
    weight, gram = problem(seed)
    q = INT4.round_to_nearest(weight)
    codes = _rounding.descend(weight, gram, q.codes_NK, q.scale_NG, sweeps)
    assert codes.dtype == torch.int8 and codes.min() >= -8 and codes.max() <= 7
    for n in range(len(weight)):
        row = slice(n, n + 1)
        before = error(weight[row], gram, q.codes_NK[row], q.scale_NG[row])
        assert error(weight[row], gram, codes[row], q.scale_NG[row]) <= before * 1.0001


def test_descent_ends_where_no_single_code_can_help() -> None:
    """By brute force: after enough sweeps no code, changed alone, lowers its row's error."""
    weight, gram = problem(5, n=2, k=128)
    q = INT4.round_to_nearest(weight)
    codes = _rounding.descend(weight, gram, q.codes_NK, q.scale_NG, 50)
    best = error(weight, gram, codes, q.scale_NG)
    for n in range(2):
        for k in range(0, 128, 7):
            for step in (-1, 1):
                other = codes.clone()
                other[n, k] = (other[n, k] + step).clamp(-8, 7)
                assert error(weight, gram, other, q.scale_NG) >= best * (1 - 1e-5)


@given(SEEDS)
def test_refitted_scales_never_raise_the_error(seed: int) -> None:
    weight, gram = problem(seed)
    q = INT4.round_to_nearest(weight)
    scale = _scales.refit(weight, gram, q.codes_NK, q.scale_NG)
    assert is_bf16(scale) and (scale > 0).all()
    for n in range(len(weight)):
        row = slice(n, n + 1)
        before = error(weight[row], gram, q.codes_NK[row], q.scale_NG[row])
        assert error(weight[row], gram, q.codes_NK[row], scale[row]) <= before * 1.0001


def test_a_refitted_scale_stays_positive_whatever_the_codes() -> None:
    """Codes of the opposite sign ask for a negative scale; no consumer reads one."""
    weight, gram = problem(11)
    q = INT4.round_to_nearest(weight)
    opposite = (-q.codes_NK).clamp(-8, 7)
    scale = _scales.refit(weight, gram, opposite, q.scale_NG)
    assert (scale > 0).all() and is_bf16(scale)
    zero = _scales.refit(weight, gram, torch.zeros_like(q.codes_NK), q.scale_NG)
    assert torch.equal(zero, q.scale_NG)


@settings(max_examples=SEVERAL)
@given(SEEDS)
def test_feedback_under_a_diagonal_gram_is_plain_rounding(seed: int) -> None:
    """Where inputs are uncorrelated no column can repair another."""
    weight, _ = problem(seed)
    diagonal = torch.diag(torch.rand(256, generator=torch.Generator().manual_seed(seed)) + 0.5)
    codes, scale = _rounding.feedback(weight, diagonal)
    assert is_bf16(scale) and (scale > 0).all()
    ties = ((weight / groups.expand(scale)) % 1 - 0.5).abs() < 1e-4
    plain = groups.round_to_codes(weight, scale)
    assert torch.equal(codes[~ties], plain[~ties])


@settings(max_examples=SEVERAL)
@given(SEEDS)
def test_feedback_beats_plain_rounding_on_correlated_inputs(seed: int) -> None:
    weight, gram = problem(seed)
    q = INT4.round_to_nearest(weight)
    codes, scale = _rounding.feedback(weight, gram)
    assert codes.min() >= -8 and codes.max() <= 7
    assert error(weight, gram, codes, scale) < error(weight, gram, q.codes_NK, q.scale_NG)
    again = _rounding.refine(weight, gram, codes, scale, 1, 1)
    assert error(weight, gram, *again) <= error(weight, gram, codes, scale) * 1.0001


def test_zero_groups_stay_zero_and_finite() -> None:
    weight, gram = problem(3)
    weight[1] = 0
    weight[2, 128:] = 0
    codes, scale = _rounding.refine(weight, gram, *_rounding.feedback(weight, gram), 2, 1)
    assert torch.isfinite(scale).all() and (scale > 0).all() and is_bf16(scale)
    assert not codes[1].any()


def test_a_gram_is_the_mean_over_tokens_and_weighs_by_squares() -> None:
    x, weight = torch.randn(30, 8), torch.rand(30)
    torch.testing.assert_close(_gram.gram(x), sum(torch.outer(r, r) for r in x) / 30)
    wanted = sum(w**2 * torch.outer(r, r) for r, w in zip(x, weight)) / weight.square().sum()
    torch.testing.assert_close(_gram.gram(x, weight), wanted)
    torch.testing.assert_close(_gram.gram(x, torch.full((30,), 0.3)), _gram.gram(x))


def test_damping_makes_any_gram_positive_definite() -> None:
    x = torch.randn(3, 64)
    torch.linalg.cholesky(_gram.damp(_gram.gram(x), 0.01))
    assert torch.equal(_gram.damp(torch.zeros(4, 4), 0.01), torch.eye(4))
    none = _gram.gram(torch.zeros(0, 4))
    assert not none.any()
