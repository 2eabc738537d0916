"""Matrices that share a tensor: their rows one after the other (w13) or in turn (gpt-oss's gate and up)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.formats._spec import GroupWeight, MicroWeight, PlainWeight, Weight


def split(weight: Weight, count: int, interleaved: bool) -> list[Weight]:
    """`count` matrices of as many rows each.  Raises: FormatError for a form whose rows do not stand alone."""
    if count == 1:
        return [weight]
    tensors = _tensors(weight)
    n = len(tensors[0])
    if n % count:
        raise FormatError(f"{n} rows are not those of {count} matrices")
    rows = n // count
    pieces = [slice(i, None, count) if interleaved else slice(i * rows, (i + 1) * rows) for i in range(count)]
    return [_made(weight, [tensor[piece] for tensor in tensors]) for piece in pieces]


def join(weights: Sequence[Weight], interleaved: bool) -> Weight:
    """Undo `split`: matrices of one form and as many rows each."""
    if len(weights) == 1:
        return weights[0]
    together = [
        torch.stack(same, 1).flatten(0, 1) if interleaved else torch.cat(same)
        for same in zip(*map(_tensors, weights), strict=True)
    ]
    return _made(weights[0], together)


def _tensors(weight: Weight) -> list[Tensor]:
    """What has one row per output row."""
    if isinstance(weight, GroupWeight):
        return [weight.bytes_NJ, weight.scale_NG]
    if isinstance(weight, MicroWeight):
        return [weight.bytes_NJ, weight.exponent_NG]
    if isinstance(weight, PlainWeight):
        return [weight.real_NK]
    raise FormatError(f"the rows of a {type(weight).__name__} do not stand alone: its scales span rows")


def _made(like: Weight, tensors: list[Tensor]) -> Weight:
    if isinstance(like, GroupWeight):
        return GroupWeight.packed(tensors[0], tensors[1], like.group_k)
    return MicroWeight.packed(tensors[0], tensors[1]) if isinstance(like, MicroWeight) else PlainWeight(tensors[0])
