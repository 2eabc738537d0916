"""An order: the same codes or scales, each where a kernel looks for it.

An order is data: one line that splits, permutes and joins axes, and for the peers whose order is no such line, a table
of the bits of a 32-bit word.  The line read backwards is the inverse, so every order is a bijection by construction.

Letters: E experts, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.numerics import axes, fp4

# What a pattern's last logical axis counts: elements of the tensor as they are, or pieces of its bytes.
ELEMENTS, NIBBLES, HALFWORDS = 0, 4, 16
PIECE_WORDS = 1 << 16  # moved at once: they and a copy stay in a core's cache


@dataclass(frozen=True)
class Order:
    """`pattern` is "logical axes -> stored axes" in einops' notation; an axis not in `sizes` takes what is left.

    `bits`: after the pattern, bit i of every 32-bit word goes to bit `bits[i]`.
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    unit: int = ELEMENTS
    bits: tuple[int, ...] = ()

    @property
    def expert_axis(self) -> int:
        """Which stored axis counts experts."""
        return axes.groups(self.pattern.split("->")[1]).index(["e"])

    def steps(self) -> list[int]:
        """What each logical axis must be a multiple of, in elements of the tensor."""
        groups = axes.groups(self.pattern.split("->")[0])
        steps = [prod(self.sizes.get(axis, 1) for axis in group) for group in groups]
        return steps if self.unit == ELEMENTS else [*steps[:-1], steps[-1] * self.unit // 8]

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why a logical tensor of this shape cannot be stored so, or None."""
        steps = self.steps()
        if len(steps) != len(shape):
            return f"{self.pattern!r} stores {len(steps)} axes, found {list(shape)}"
        for place, (step, found) in enumerate(zip(steps, shape, strict=True)):
            if found % step:
                return f"{self.pattern!r}: axis {place} is {found}, expected a multiple of {step}"
        return None

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The stored tensor's shape, counted in elements like the logical one's.  Raises: FormatError."""
        self._require(shape)
        _, _, joined = axes.plan(self._units(shape), self.pattern, self.sizes)
        return tuple(joined) if self.unit == ELEMENTS else (*joined[:-1], joined[-1] * self.unit // 8)

    def store(self, logical: Tensor) -> Tensor:
        """Logical order to the kernel's.  Raises: FormatError when the shape does not fit."""
        self._require(tuple(logical.shape))
        pieces = _take_apart(logical.contiguous(), self.unit)
        split, order, joined = axes.plan(pieces.shape, self.pattern, self.sizes)
        stored = _put_together(pieces.reshape(split).permute(order).reshape(joined), self.unit, logical.dtype)
        return _move_bits(stored, self.bits) if self.bits else stored

    def load(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of `store`; `shape` is the logical tensor's."""
        self._require(shape)
        stored = _move_bits(stored, _inverse(self.bits)) if self.bits else stored
        split, order, joined = axes.plan(self._units(shape), self.pattern, self.sizes)
        pieces = _take_apart(stored.contiguous(), self.unit).reshape(joined)
        permuted = pieces.reshape([split[axis] for axis in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return _put_together(permuted.permute(back).reshape(self._units(shape)), self.unit, stored.dtype).view(shape)

    def _require(self, shape: tuple[int, ...]) -> None:
        why = self.refusal(shape)
        if why:
            raise FormatError(why)

    def _units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape counted in pieces; byte tensors are what is taken apart."""
        if self.unit == ELEMENTS:
            return shape
        return (*shape[:-1], shape[-1] * 8 // self.unit)


def _take_apart(stored: Tensor, unit: int) -> Tensor:
    if unit == ELEMENTS:
        return stored
    raw = stored.view(torch.uint8)
    return fp4.unpack_low_first(raw) if unit == NIBBLES else raw.view(torch.int16)


def _put_together(pieces: Tensor, unit: int, dtype: torch.dtype) -> Tensor:
    if unit == ELEMENTS:
        return pieces
    pieces = pieces.contiguous()
    return (fp4.pack_low_first(pieces) if unit == NIBBLES else pieces).view(dtype)


def _inverse(bits: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(bits)), key=bits.__getitem__))


def _move_bits(stored: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Every little-endian word of 32 bits, its bits moved; bits that move equally far move together."""
    words = stored.contiguous().view(torch.uint8).reshape(-1).view(torch.int32)
    moved = torch.empty_like(words)
    for piece, out in zip(torch.split(words, PIECE_WORDS), torch.split(moved, PIECE_WORDS)):
        out.zero_()
        for distance, mask in _moves(bits):
            shifted = piece << distance if distance >= 0 else piece >> -distance
            out.bitwise_or_(shifted.bitwise_and_(mask))
    return moved.view(torch.uint8).view(stored.dtype).view(stored.shape)


@cache
def _moves(bits: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(how far to the left, which bits it gives) of every distance; the mask also drops copies of a sign bit."""
    masks: dict[int, int] = {}
    for source, target in enumerate(bits):
        masks[target - source] = masks.get(target - source, 0) | 1 << target
    return tuple((distance, mask - (mask >> 31 << 32)) for distance, mask in masks.items())
