"""Rotary positions, plain and YaRN (arXiv 2309.00071; the constants as DeepSeek-V3's inference code uses them)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w4afp8.families._spec import Rope


def inverse_frequencies(rope: Rope, dims: int) -> Tensor:
    """Angle per position of each of the dims/2 pairs: float32 [dims/2]."""
    plain = 1.0 / rope.theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    if rope.factor <= 1:
        return plain
    low, high = (_turns_to_pair(turns, rope, dims) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001  # the paper's ramp is a step when both ends meet
    # 0 below `low` (pairs that turn often keep their frequency), 1 above `high` (slow pairs are interpolated).
    ramp = ((torch.arange(dims // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def _turns_to_pair(turns: float, rope: Rope, dims: int) -> float:
    """The pair that makes `turns` full turns over the original context."""
    return dims * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rotation_scale(rope: Rope) -> float:
    """What cos and sin are multiplied with."""
    if rope.factor <= 1:
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _magnitude(rope.factor, rope.mscale) / _magnitude(rope.factor, rope.mscale_all_dim)
    return _magnitude(rope.factor, 1.0)


def softmax_scale(rope: Rope, query_head: int) -> float:
    """What attention scores are multiplied with."""
    scale = float(query_head**-0.5)
    if rope.factor > 1 and rope.mscale_all_dim:
        scale *= _magnitude(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def tables(rope: Rope, dims: int, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin: float32 [positions, dims/2] each."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse_frequencies(rope, dims))
    return angles.cos() * rotation_scale(rope), angles.sin() * rotation_scale(rope)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn each pair of the last dimension by its position's angle.

    Shapes: [..., S, dims], [S, dims/2] twice -> [..., S, dims].  Pairs are (2i, 2i+1) when interleaved, else
    (i, i + dims/2); the result is stored as halves in both cases, which a dot product of queries and keys cannot see.
    """
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
