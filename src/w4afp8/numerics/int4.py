"""Signed 4-bit codes.  Letters: N output rows, K input columns."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError

LOWEST, HIGHEST = -8, 7


def pack_low_first(codes_NK: Tensor) -> Tensor:
    """Put columns 2j and 2j+1 of each row into byte j, column 2j in the low nibble.

    Shapes: int8 [..., N, K] -> int8 [..., N, K/2], K even.
    Range:  codes in [-8, 7], two's complement; never wrapped, never clamped.
    Raises: QuantizationError naming the first code out of range, or an odd K.
    Agrees with: SGLang 0.5.23 `w4afp8` weights; TensorRT-LLM W4A8_CUSTOM.
    """
    if codes_NK.dtype != torch.int8:
        raise QuantizationError(f"codes are {codes_NK.dtype}, expected int8")
    if codes_NK.shape[-1] % 2:
        raise QuantizationError(f"codes have {codes_NK.shape[-1]} columns; two share a byte, so K must be even")
    least, most = (int(edge) for edge in codes_NK.aminmax()) if codes_NK.numel() else (0, 0)
    if least < LOWEST or most > HIGHEST:  # only then is the first one looked for, which takes longer than packing
        wrong = (codes_NK < LOWEST) | (codes_NK > HIGHEST)
        where = wrong.nonzero()[0].tolist()
        raise QuantizationError(f"code {where} is {codes_NK[tuple(where)].item()}, int4 holds {LOWEST}..{HIGHEST}")
    return (codes_NK[..., 1::2] << 4) | (codes_NK[..., 0::2] & 0xF)


def unpack_low_first(packed_NJ: Tensor) -> Tensor:
    """Undo `pack_low_first`.

    Shapes: int8 or uint8 [..., N, K/2] -> int8 [..., N, K].
    """
    signed = packed_NJ.view(torch.int8)
    low = (signed << 4) >> 4  # shift up and arithmetically down: sign-extends the low nibble
    high = signed >> 4
    return torch.stack((low, high), dim=-1).flatten(-2)


def to_offset_binary(packed: Tensor) -> Tensor:
    """Two's complement nibbles <-> code + 8, its own inverse: flip each nibble's top bit (formats: `code ^ 8`)."""
    return (packed.view(torch.uint8) ^ 0x88).view(packed.dtype)
