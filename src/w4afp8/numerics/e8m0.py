"""E8M0, the scale of microscaled formats: byte b is 2^(b - 127); 255 is NaN; no sign, no zero, no infinity.

Bytes are moved as bytes.  A copy by value between this type and another rounds (formats: D4), so nothing here casts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError

E8M0 = torch.float8_e8m0fnu
NAN = 255
BIAS = 127
SMALLEST_BITS = 0x00400000  # 2^-127, the one scale that float32 holds as a subnormal: byte 0


def decode(bytes_NG: Tensor) -> Tensor:
    """2^(b - 127) of every byte, exactly.

    Shapes: uint8 [N, G] -> float32 [N, G].
    Raises: QuantizationError naming the first 255, which is NaN.
    """
    bad = (bytes_NG == NAN).nonzero()
    if len(bad):
        raise QuantizationError(f"scale {bad[0].tolist()} is the byte 255, which is NaN in E8M0")
    bits = bytes_NG.to(torch.int32) << 23
    return bits.masked_fill_(bytes_NG == 0, SMALLEST_BITS).view(torch.float32)


def encode(scale_NG: Tensor) -> Tensor:
    """The byte of every scale; exact or refused, never rounded.

    Shapes: float32 [N, G] -> uint8 [N, G].
    Raises: QuantizationError naming the first scale that is no power of two within 2^-127..2^127.
    """
    if scale_NG.dtype != torch.float32:
        raise QuantizationError(f"scales are {scale_NG.dtype}, expected torch.float32")
    bits = scale_NG.contiguous().view(torch.int32)
    exponent = bits >> 23  # with the sign: negative numbers fall out below
    power = (bits & 0x007FFFFF == 0) & (exponent >= 1) & (exponent <= 254)
    bad = (~(power | (bits == SMALLEST_BITS))).nonzero()
    if len(bad):
        where = bad[0].tolist()
        raise QuantizationError(
            f"scale {where} is {scale_NG[tuple(where)].item()!r}; E8M0 holds the powers of two from 2^-127 to 2^127"
        )
    return exponent.to(torch.uint8)
