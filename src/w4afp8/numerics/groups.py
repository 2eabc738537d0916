"""Groups of consecutive inputs that share one scale.  Letters: N rows, K columns, G groups along K."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics.int4 import HIGHEST, LOWEST

GROUP = 128


def count(k: int, group_k: int = GROUP) -> int:
    """Groups along K.  Raises: QuantizationError when K is not a whole number of groups."""
    if k % group_k:
        raise QuantizationError(f"K = {k} is not a multiple of the group size {group_k}")
    return k // group_k


def expand(scale_NG: Tensor, group_k: int = GROUP) -> Tensor:
    """[N, G] -> [N, G * group_k], each scale repeated over its group."""
    return scale_NG.repeat_interleave(group_k, dim=-1)


def amax(real_NK: Tensor, group_k: int = GROUP) -> Tensor:
    """Largest magnitude of each group: [N, K] -> [N, G]."""
    n, k = real_NK.shape
    return real_NK.view(n, count(k, group_k), group_k).abs().amax(-1)


def round_to_bf16(scale_NG: Tensor) -> Tensor:
    """The scale that a consumer really multiplies with: SGLang casts float32 group scales to bfloat16 at load."""
    return scale_NG.to(torch.bfloat16).to(torch.float32)


def exactly_bf16(scale_NG: Tensor) -> Tensor:
    """The same scales as bfloat16: float32 [N, G] -> bfloat16 [N, G], exact or refused, never rounded.

    Raises: QuantizationError naming the first scale that bfloat16 does not hold.
    """
    rounded_NG = scale_NG.to(torch.bfloat16)
    bad = (rounded_NG.to(torch.float32) != scale_NG).nonzero()
    if len(bad):
        where = bad[0].tolist()
        raise QuantizationError(f"scale {where} is {scale_NG[tuple(where)].item()!r}, which bfloat16 does not hold")
    return rounded_NG


def usable(scale_NG: Tensor) -> Tensor:
    """Replace the zero scale of an all-zero group by 1: its codes are 0, and no reader ever divides by zero."""
    return torch.where(scale_NG > 0, scale_NG, torch.ones_like(scale_NG))


def round_to_codes(real_NK: Tensor, scale_NG: Tensor, group_k: int = GROUP) -> Tensor:
    """Nearest int4 code of every element under its group's scale, ties to even, saturating at -8..7.

    Shapes: float32 [N, K], float32 [N, G] (positive) -> int8 [N, K].
    """
    n, k = real_NK.shape
    grouped = real_NK.view(n, count(k, group_k), group_k) / scale_NG[..., None]
    return grouped.round_().clamp_(LOWEST, HIGHEST).to(torch.int8).view(n, k)


def decode(codes_NK: Tensor, scale_NG: Tensor, group_k: int = GROUP) -> Tensor:
    """code * scale: int8 [N, K], float32 [N, G] -> float32 [N, K]."""
    n, k = codes_NK.shape
    return (codes_NK.to(torch.float32).view(n, count(k, group_k), group_k) * scale_NG[..., None]).view(n, k)
