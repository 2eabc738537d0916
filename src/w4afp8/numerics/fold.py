"""MXFP4 folded into FP8 blocks: the same numbers, or a refusal.

A block of 128 x 128 has 128 rows x 4 groups of 32, each with a power of two.  Under the block's own power of two, six
below the largest of them, every e2m1 value is an e4m3 number as long as no group lies more than 14 below: 6 * 2^6 = 384
fits under 448, and 0.5 * 2^(6 - 14) is e4m3's smallest.  Letters: N rows, K columns, G groups along K, R x C blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics import e8m0, fp4, fp8, groups

GROUP = 32
SPREAD = 14  # powers of two between the groups of one block
RAISE = 6  # the largest group's values stand at 2^6 times e2m1's
UNIT = 127  # the byte of 1, what an all-zero block gets


def fold(codes_NK: Tensor, exponent_NG: Tensor) -> tuple[Tensor, Tensor]:
    """e2m1 codes and E8M0 bytes per 32 inputs -> e4m3 codes and float32 scales per 128 x 128, exactly.

    Shapes: uint8 [N, K], uint8 [N, K/32] -> e4m3 [N, K], float32 [ceil(N/128), ceil(K/128)].
    Raises: QuantizationError naming the first group whose power of two is too far below its block's, or whose block has
    no E8M0 scale; a group of zeros counts for nothing.
    Agrees with: SGLang 0.5.23 `cast_e2m1fn_to_e4m3fn` wherever that is lossless (formats: D5).
    """
    n, k = codes_NK.shape
    e8m0.decode(exponent_NG)  # 255 is NaN: refused there
    alive_NG = (codes_NK & 7).view(n, groups.count(k, GROUP), GROUP).amax(-1) > 0
    exponent = torch.where(alive_NG, exponent_NG, 0).to(torch.int32)
    largest_RC = _largest(exponent)
    top_NG = largest_RC.repeat_interleave(fp8.BLOCK, 0)[:n].repeat_interleave(fp8.BLOCK // GROUP, 1)[:, : k // GROUP]
    below_NG = top_NG - exponent
    _refuse(alive_NG & (below_NG > SPREAD), exponent, top_NG, f"e4m3 holds powers of two up to {SPREAD} apart")
    _refuse(alive_NG & (top_NG < RAISE), exponent, top_NG, "the block's scale would be below the smallest of E8M0")
    raised = e8m0.decode((UNIT + RAISE - below_NG.clamp(0, SPREAD)).to(torch.uint8))
    codes = fp8.encode(groups.decode(fp4.decode(codes_NK), raised, GROUP))
    scale = torch.where(largest_RC > 0, largest_RC - RAISE, UNIT).to(torch.uint8)
    return codes, e8m0.decode(scale)


def _largest(exponent_NG: Tensor) -> Tensor:
    """The largest byte of every block: int32 [N, G] -> [R, C]."""
    n, g = exponent_NG.shape
    wide = fp8.BLOCK // GROUP
    rows, columns = fp8.block_grid(n, g * GROUP)
    padded = torch.nn.functional.pad(exponent_NG, (0, columns * wide - g, 0, rows * fp8.BLOCK - n))
    return padded.view(rows, fp8.BLOCK, columns, wide).amax((1, 3))


def _refuse(bad_NG: Tensor, exponent_NG: Tensor, top_NG: Tensor, why: str) -> None:
    if bool(bad_NG.any()):
        where = bad_NG.nonzero()[0].tolist()
        mine, top = int(exponent_NG[tuple(where)]), int(top_NG[tuple(where)])
        raise QuantizationError(
            f"group {where} has the scale byte {mine} and its 128 x 128 block goes up to {top}; {why}"
        )
