"""A layout: the same codes or scales in the order in which a kernel reads them.

A layout is data: one line that splits, permutes and joins axes, and for the one peer whose order is no such line, a
table of bits.  The line read backwards is the inverse, so every layout is a bijection by construction.

Letters: E experts, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.numerics import axes, fp4

# What a pattern's last logical axis counts: elements of the tensor as they are, or pieces of its bytes.
ELEMENTS, BITS, NIBBLES, HALFWORDS = 0, 1, 4, 16


@dataclass(frozen=True, slots=True)
class Layout:
    """`pattern` is "logical axes -> stored axes" in einops' notation; an axis not in `sizes` takes what is left."""

    name: str
    read_by: str
    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    unit: int = ELEMENTS
    table: tuple[int, ...] = ()  # where element i of the innermost len(table) goes, after the pattern

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why a logical tensor of this shape cannot be stored so, or None."""
        groups = axes.groups(self.pattern.split("->")[0])
        if len(groups) != len(shape):
            return f"{self.name} stores {len(groups)} axes, found {list(shape)}"
        steps = [prod(self.sizes.get(axis, 1) for axis in group) for group in groups]
        if self.unit != ELEMENTS:
            steps[-1] = steps[-1] * self.unit // 8
        for place, (step, found) in enumerate(zip(steps, shape, strict=True)):
            if found % step:
                return f"{self.name}: axis {place} is {found}, expected a multiple of {step}"
        return None

    def store(self, logical: Tensor) -> Tensor:
        """Logical order to the kernel's.  Raises: FormatError when the shape does not fit."""
        why = self.refusal(tuple(logical.shape))
        if why:
            raise FormatError(why)
        pieces = _take_apart(logical.contiguous(), self.unit)
        split, order, joined = axes.plan(pieces.shape, self.pattern, self.sizes)
        stored = pieces.reshape(split).permute(order).reshape(joined)
        if self.table:
            runs = stored.reshape(-1, len(self.table))
            stored = torch.empty_like(runs).index_copy_(1, torch.tensor(self.table), runs).view(joined)
        return _put_together(stored, self.unit, logical.dtype)

    def load(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of `store`; `shape` is the logical tensor's."""
        why = self.refusal(shape)
        if why:
            raise FormatError(why)
        split, order, joined = axes.plan(self._units(shape), self.pattern, self.sizes)
        pieces = _take_apart(stored.contiguous(), self.unit).reshape(joined)
        if self.table:
            pieces = pieces.reshape(-1, len(self.table))[:, torch.tensor(self.table)]
        permuted = pieces.reshape([split[axis] for axis in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return _put_together(permuted.permute(back).reshape(self._units(shape)), self.unit, stored.dtype).view(shape)

    def _units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape counted in pieces; byte tensors are what is taken apart."""
        if self.unit == ELEMENTS:
            return shape
        return (*shape[:-1], shape[-1] * 8 // self.unit)


def _take_apart(stored: Tensor, unit: int) -> Tensor:
    if unit == ELEMENTS:
        return stored
    raw = stored.view(torch.uint8)
    if unit == NIBBLES:
        return fp4.unpack_low_first(raw)
    if unit == HALFWORDS:
        return raw.view(torch.int16)
    return (raw[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _put_together(pieces: Tensor, unit: int, dtype: torch.dtype) -> Tensor:
    if unit == ELEMENTS:
        return pieces
    pieces = pieces.contiguous()
    if unit == NIBBLES:
        return fp4.pack_low_first(pieces).view(dtype)
    if unit == HALFWORDS:
        return pieces.view(dtype)
    weights = 1 << torch.arange(8, dtype=torch.int32)
    return (pieces.view(*pieces.shape[:-1], -1, 8) * weights).sum(-1).to(torch.uint8).view(dtype)
