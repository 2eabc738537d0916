"""MXFP4 under FP8's block scales: exact within fourteen powers of two, refused beyond."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.formats._spec import BlockWeight, MicroWeight
from w4afp8.numerics import fold, fp4

Golden = Callable[[str], dict[str, Tensor]]


def folded(codes_NK: Tensor, exponent_NG: Tensor) -> BlockWeight:
    return BlockWeight(*fold.fold(codes_NK, exponent_NG))


def test_sglang_folds_to_the_same_bytes(golden_tensors: Golden) -> None:
    peer = golden_tensors("sglang_fp4_to_fp8_fold")
    found = folded(fp4.unpack_low_first(peer["w_packed"]), peer["exact.scale_e8m0"])
    assert torch.equal(found.codes_NK.view(torch.uint8), peer["exact.out_e4m3_bytes"])
    assert torch.equal(found.scale_RC, torch.exp2(peer["exact.out_scale_e8m0"].float() - 127))


def test_what_sglang_loses_is_refused(golden_tensors: Golden) -> None:
    peer = golden_tensors("sglang_fp4_to_fp8_fold")
    with pytest.raises(QuantizationError, match=r"group \[\d+, \d+\] has the scale byte .* up to .* 14 apart"):
        fold.fold(fp4.unpack_low_first(peer["w_packed"]), peer["wide.scale_e8m0"])


@given(
    n=st.integers(1, 200), g=st.integers(1, 9), spread=st.integers(0, 14), top=st.integers(20, 240),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_size_folds_exactly_within_the_spread(n: int, g: int, spread: int, top: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n, 32 * g), generator=generator).to(torch.uint8)
    exponent = torch.randint(top - spread, top + 1, (n, g), generator=generator).to(torch.uint8)
    assert torch.equal(folded(codes, exponent).dequantize(), MicroWeight(codes, exponent).dequantize())


def test_every_code_fourteen_below_and_none_fifteen_below() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(1, 4)
    for below, fits in ((14, True), (15, False)):
        exponent = torch.tensor([[120, 120 - below]], dtype=torch.uint8)
        if fits:
            assert torch.equal(folded(codes, exponent).dequantize(), MicroWeight(codes, exponent).dequantize())
        else:
            with pytest.raises(QuantizationError, match=r"group \[0, 1\] has the scale byte 105"):
                fold.fold(codes, exponent)


def test_a_group_of_zeros_counts_for_nothing() -> None:
    codes = torch.full((1, 96), 3, dtype=torch.uint8)
    codes[0, 32:64], codes[0, 64:] = 0, 8  # zeros and minus zeros
    exponent = torch.tensor([[100, 254, 3]], dtype=torch.uint8)
    found = folded(codes, exponent)
    assert torch.equal(found.dequantize(), MicroWeight(codes, exponent).dequantize())
    assert torch.signbit(found.dequantize()[0, 64:]).all()
    assert folded(torch.zeros(1, 32, dtype=torch.uint8), exponent[:, :1]).scale_RC.item() == 1


def test_a_block_below_e8m0_and_a_nan_are_refused() -> None:
    codes = torch.full((1, 32), 7, dtype=torch.uint8)
    assert torch.equal(
        folded(codes, torch.tensor([[6]], dtype=torch.uint8)).dequantize(),
        MicroWeight(codes, torch.tensor([[6]], dtype=torch.uint8)).dequantize(),
    )
    with pytest.raises(QuantizationError, match="below the smallest of E8M0"):
        fold.fold(codes, torch.tensor([[5]], dtype=torch.uint8))
    with pytest.raises(QuantizationError, match="255, which is NaN"):
        fold.fold(codes, torch.tensor([[255]], dtype=torch.uint8))
