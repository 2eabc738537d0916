"""Signed 4-bit codes: by hand, all of them, and as the peers pack them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics import int4

CODES = torch.arange(-8, 8, dtype=torch.int8)
Golden = Callable[[str], dict[str, Tensor]]


def test_golden_byte() -> None:  # by hand: -8 is 0x8, 7 is 0x7, the even column is low
    packed = int4.pack_low_first(torch.tensor([[-8, 7]], dtype=torch.int8))
    assert packed.view(torch.uint8).tolist() == [[0x78]]


def test_every_pair_of_codes_survives() -> None:
    pairs_NK = torch.cartesian_prod(CODES, CODES)
    packed = int4.pack_low_first(pairs_NK)
    assert len(packed.unique()) == 256
    assert torch.equal(int4.unpack_low_first(packed), pairs_NK)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_every_byte_survives(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)[None]
    codes = int4.unpack_low_first(every)
    assert torch.equal(int4.pack_low_first(codes).view(dtype), every)
    for byte in range(256):  # the arithmetic of the format page, one byte at a time
        low, high = byte & 15, byte >> 4
        assert codes[0, 2 * byte].item() == (low ^ 8) - 8
        assert codes[0, 2 * byte + 1].item() == (high ^ 8) - 8


@given(st.lists(st.integers(-128, 127), min_size=2, max_size=64).filter(lambda v: len(v) % 2 == 0))
def test_codes_are_packed_exactly_or_refused(values: list[int]) -> None:
    codes = torch.tensor([values], dtype=torch.int8)
    if all(-8 <= v <= 7 for v in values):
        assert torch.equal(int4.unpack_low_first(int4.pack_low_first(codes)), codes)
    else:
        first = next(v for v in values if not -8 <= v <= 7)
        with pytest.raises(QuantizationError, match=rf"is {first}, int4 holds"):
            int4.pack_low_first(codes)


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(QuantizationError, match="3 columns"):
        int4.pack_low_first(torch.zeros(2, 3, dtype=torch.int8))
    with pytest.raises(QuantizationError, match="float32"):
        int4.pack_low_first(torch.zeros(2, 4))
    with pytest.raises(QuantizationError, match=r"code \[1, 2\] is 8"):
        int4.pack_low_first(torch.tensor([[0, 0, 0, 0], [0, 0, 8, 9]], dtype=torch.int8))


def test_views_pack_as_their_copies_do() -> None:
    codes = CODES.repeat(4, 2)
    view = codes.T[::2]
    assert not view.is_contiguous()
    assert torch.equal(int4.pack_low_first(view), int4.pack_low_first(view.contiguous()))


def test_offset_binary_is_code_plus_eight() -> None:
    packed = int4.pack_low_first(torch.cartesian_prod(CODES, CODES))
    offset = int4.to_offset_binary(packed).view(torch.uint8)
    assert torch.equal(offset[:, 0] & 15, (torch.cartesian_prod(CODES, CODES)[:, 0] + 8).to(torch.uint8))
    assert torch.equal(int4.to_offset_binary(int4.to_offset_binary(packed)), packed)


def test_sglang_repacks_compressed_tensors_words_to_our_bytes(golden_tensors: Golden) -> None:
    peer = golden_tensors("ct_pack_quantized_int4")
    for prefix in ("", "small."):
        codes = peer[f"{prefix}q_int8"]
        packed = int4.pack_low_first(codes)
        assert torch.equal(packed, peer[f"{prefix}sglang_cutlass_int8"])
        assert torch.equal(int4.unpack_low_first(packed), codes)


def test_compressed_tensors_words_are_our_bytes_with_flipped_top_bits(golden_tensors: Golden) -> None:
    peer = golden_tensors("ct_pack_quantized_int4")
    for prefix in ("", "small."):
        words = peer[f"{prefix}ct_weight_packed"].contiguous().view(torch.uint8)
        ours = int4.pack_low_first(peer[f"{prefix}q_int8"])
        assert torch.equal(int4.to_offset_binary(ours).view(torch.uint8), words)


def test_modelopt_packs_along_rows_and_we_along_columns(golden_tensors: Golden) -> None:
    """ModelOpt's byte (n, k) holds rows 2n and 2n+1: our packing of the transpose."""
    peer = golden_tensors("int4_group_quantize")
    codes_KN = int4.unpack_low_first(peer["modelopt.packed_outdim_u8"].T.contiguous())
    scale = peer["amax_div7_f32"]
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).repeat_interleave(128, 1)
    expected = (peer["w_bf16"].float() / scale).round().clamp(-8, 7).to(torch.int8)
    assert torch.equal(codes_KN.T, expected)
