"""Groups of 128 columns that share a scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics import groups, int4

Golden = Callable[[str], dict[str, Tensor]]


def test_flashinfer_rounds_as_we_do(golden_tensors: Golden) -> None:
    """FlashInfer: codes from the float32 amax/7 (1 for an all-zero group), the scale rounded to bf16 afterwards."""
    peer = golden_tensors("int4_group_quantize")
    w = peer["w_bf16"].float()
    scale = groups.usable(groups.amax(w) / 7)
    assert torch.equal(int4.pack_low_first(groups.round_to_codes(w, scale)), peer["flashinfer.packed"].view(torch.int8))
    assert torch.equal(groups.round_to_bf16(scale), peer["flashinfer.scale_bf16"].float())
    assert torch.equal(groups.amax(w) / 7, peer["amax_div7_f32"])


def test_compressed_tensors_rounds_as_we_do_in_float32(golden_tensors: Golden) -> None:
    """compressed-tensors: amax/7.5 in the weight's dtype; its all-zero group has scale eps and codes 0."""
    peer = golden_tensors("int4_group_quantize")
    w, alive = peer["w_bf16"].float(), groups.amax(peer["w_bf16"].float()) > 0
    torch.testing.assert_close((groups.amax(w) / 7.5)[alive], peer["ct_f32.scale"][alive], rtol=2e-7, atol=0)
    assert torch.equal(groups.round_to_codes(w, peer["ct_f32.scale"]), peer["ct_f32.q_int8"])


def test_ties_go_to_the_even_code() -> None:
    w = torch.zeros(1, 128)
    w[0, :8] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5, -7.5])
    assert groups.round_to_codes(w, torch.ones(1, 1))[0, :8].tolist() == [0, 2, 2, 0, -2, -2, 6, -8]


def test_codes_saturate_at_both_ends() -> None:
    w = torch.full((1, 128), 100.0)
    w[0, 64:] = -100.0
    assert groups.round_to_codes(w, torch.ones(1, 1)).unique().tolist() == [-8, 7]


@given(st.integers(1, 5), st.integers(1, 3), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_rounding_costs_at_most_half_a_step(n: int, g: int, size: float, seed: int) -> None:
    w = torch.randn(n, g * 128, generator=torch.Generator().manual_seed(seed)) * size
    scale = groups.amax(w) / 7
    step = groups.expand(scale)
    error = (groups.decode(groups.round_to_codes(w, scale), scale) - w).abs()
    assert (error <= 0.500001 * step).all()


@given(st.integers(0, 2**31))
def test_decode_undoes_codes_exactly(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (3, 256), generator=generator, dtype=torch.int8)
    scale = groups.round_to_bf16(torch.rand(3, 2, generator=generator) + 0.01)
    assert torch.equal(groups.round_to_codes(groups.decode(codes, scale), scale), codes)


def test_a_k_that_is_no_whole_number_of_groups_is_refused() -> None:
    for k in (1, 127, 129, 200):
        with pytest.raises(QuantizationError, match=f"K = {k} is not a multiple"):
            groups.amax(torch.zeros(2, k))
    assert groups.count(0) == 0


def test_a_zero_group_gets_a_scale_of_one() -> None:
    assert groups.usable(torch.tensor([[0.0, 0.25]])).tolist() == [[1.0, 0.25]]


def test_bf16_rounding_is_idempotent_and_close() -> None:
    scale = torch.rand(1000) + 1e-3
    once = groups.round_to_bf16(scale)
    assert torch.equal(groups.round_to_bf16(once), once)
    assert ((once - scale).abs() <= scale * 2**-8).all()
