"""The product of MXFP4 experts as a weight-only engine computes it: bytes to bfloat16 by a table, then a plain product.

Its own decoding, so that a mistake in `numerics` does not prove itself.  Letters: E experts, T tokens, N x K a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By the OCP standard: s e e m, exponent bias 1.
E2M1 = [s * (m / 2 if e == 0 else (1 + m / 2) * 2.0 ** (e - 1)) for s in (1, -1) for e in range(4) for m in range(2)]
PAIRS = [[E2M1[byte & 15], E2M1[byte >> 4]] for byte in range(256)]
E8M0_BIAS = 127
GROUP = 32


def grouped_product(x: Tensor, x_scale_T: Tensor, packed: Tensor, exponent: Tensor, offsets: Tensor) -> Tensor:
    """Rows offsets[e]..offsets[e+1] of e4m3 x [T, K] times expert e's weight: bfloat16 [T, N].

    `packed` is uint8 [E, N, K/2], column 2j in the low nibble of byte j; `exponent` uint8 [E, N, K/32].
    """
    pairs = torch.tensor(PAIRS)
    found = []
    for expert, (codes, power) in enumerate(zip(packed, exponent, strict=True)):
        mine = slice(int(offsets[expert]), int(offsets[expert + 1]))
        scale = torch.ldexp(torch.ones(power.shape), power.int() - E8M0_BIAS).repeat_interleave(GROUP, -1)
        weight = (pairs[codes.long()].flatten(-2) * scale).to(torch.bfloat16)
        found.append((x[mine].float() * x_scale_T[mine, None]) @ weight.float().T)
    return torch.cat(found).to(torch.bfloat16)
