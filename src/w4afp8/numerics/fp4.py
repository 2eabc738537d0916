"""FP4 e2m1: three bits choose a magnitude, the fourth is the sign; code 8 is -0.  Letters: N rows, K columns."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = 6.0
HIGHEST = 15


def decode(codes_NK: Tensor) -> Tensor:
    """The value of every code: uint8 [N, K] in 0..15 -> float32 [N, K]; code 8 is -0."""
    table = torch.tensor([sign * m for sign in (1.0, -1.0) for m in MAGNITUDES], device=codes_NK.device)
    return table[codes_NK.long()]


def encode(real_NK: Tensor) -> Tensor:
    """The nearest code of every value, ties to the even code, saturating at +-6; -0 becomes code 0.

    Shapes: float32 [N, K] -> uint8 [N, K].
    Raises: QuantizationError naming the first NaN.
    Agrees with: compressed-tensors 0.20 `cast_to_fp4`, DeepSeek-V4's own kernel.  Triton rounds ties away from zero,
    ModelOpt and FlashInfer toward it (formats: D3), so codes of two tools are compared by value.
    """
    bad = real_NK.isnan().nonzero()
    if len(bad):
        raise QuantizationError(f"value {bad[0].tolist()} is NaN, which e2m1 cannot hold")
    size_NK = real_NK.abs()
    codes_NK = torch.zeros_like(real_NK, dtype=torch.uint8)
    for code in range(1, len(MAGNITUDES)):
        middle = (MAGNITUDES[code - 1] + MAGNITUDES[code]) / 2
        codes_NK += size_NK > middle if code % 2 else size_NK >= middle  # a tie goes to whichever code is even
    return codes_NK | ((real_NK < 0).to(torch.uint8) << 3)


def pack_low_first(codes_NK: Tensor) -> Tensor:
    """Put columns 2j and 2j+1 of each row into byte j, column 2j in the low nibble.

    Shapes: uint8 [..., N, K] -> uint8 [..., N, K/2], K even.
    Raises: QuantizationError naming the first code above 15, or an odd K.
    Agrees with: GPT-OSS blocks, DeepSeek-V4 experts, compressed-tensors `mxfp4-pack-quantized`.
    """
    if codes_NK.dtype != torch.uint8:
        raise QuantizationError(f"codes are {codes_NK.dtype}, expected uint8")
    if codes_NK.shape[-1] % 2:
        raise QuantizationError(f"codes have {codes_NK.shape[-1]} columns; two share a byte, so K must be even")
    if codes_NK.numel() and int(codes_NK.amax()) > HIGHEST:
        where = (codes_NK > HIGHEST).nonzero()[0].tolist()
        raise QuantizationError(f"code {where} is {codes_NK[tuple(where)].item()}, e2m1 holds 0..{HIGHEST}")
    return (codes_NK[..., 1::2] << 4) | codes_NK[..., 0::2]


def unpack_low_first(packed_NJ: Tensor) -> Tensor:
    """Undo `pack_low_first`.

    Shapes: uint8 or int8 [..., N, K/2] -> uint8 [..., N, K].
    """
    raw = packed_NJ.view(torch.uint8)
    return torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2)
