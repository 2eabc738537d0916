"""Error measures, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w4afp8.numerics import distance


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**31))
def test_the_trace_under_the_gram_is_the_mean_squared_output_error(n: int, k: int, t: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(n, k, generator=generator, dtype=torch.float64)
    x = torch.randn(t, k, generator=generator, dtype=torch.float64)
    expected = (x @ error.T).square().sum(1).mean().item()
    assert distance.gram_error(error, x.T @ x / t) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_relative_frobenius_by_hand() -> None:
    assert distance.relative_frobenius(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])) == math.inf
    assert distance.relative_frobenius(torch.zeros(2), torch.zeros(2)) == 0.0
    assert distance.relative_frobenius(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == pytest.approx(1.25)


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert distance.kl_divergence(p.log() + 7, q.log() - 3).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**31))
def test_kl_is_zero_for_equals_and_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(5, 11, generator=generator) * 4 for _ in range(2))
    assert distance.kl_divergence(a, a).abs().max() == 0
    assert (distance.kl_divergence(a, b) >= -1e-6).all()


def test_negative_log_likelihood_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert distance.negative_log_likelihood(logits, torch.tensor([1])).item() == pytest.approx(-math.log(0.75))
