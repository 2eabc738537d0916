"""An order: the same codes or scales, each where a kernel looks for it.

An order is data: one line that splits, permutes and joins axes, and for the peers whose order is no such line, a table
of the bits of a 32-bit word.  The line read backwards is the inverse, so every order is a bijection by construction.
`_gather` applies it, to tensors in the CPU's memory.

Letters: E experts, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from w4afp8.checkpoint.memory import empty
from w4afp8.errors import FormatError
from w4afp8.layouts import _bits, _recode
from w4afp8.layouts._gather import Route
from w4afp8.layouts._words import Step
from w4afp8.numerics import axes

# What a pattern's last logical axis counts: elements of the tensor as they are, or pieces of its bytes.
ELEMENTS, HALFWORDS = 0, 16


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

    def store(self, logical: Tensor, values: tuple[int, ...] = ()) -> Tensor:
        """Logical order to the kernel's; before, every 4-bit code c becomes `values[c]`, if there are such.

        Raises: FormatError when the shape does not fit.
        """
        shape = tuple(logical.shape)
        stored_shape = self.stored_shape(shape)
        logical = logical.contiguous()
        steps = (*_recode.steps(values), *_bits.steps(self.bits))
        if self._stays and not steps:
            return logical.view(stored_shape)
        stored = empty(stored_shape, logical.dtype)
        self._route(shape, steps).store(self._pieces(logical), self._pieces(stored))
        return stored

    def load(self, stored: Tensor, shape: tuple[int, ...], values: tuple[int, ...] = ()) -> Tensor:
        """The inverse of `store` with the same `values`; `shape` is the logical tensor's."""
        self._require(shape)
        stored = stored.contiguous()
        steps = (*_recode.steps(values), *_bits.steps(self.bits))
        if self._stays and not steps:
            return stored.view(shape)
        logical = empty(shape, stored.dtype)
        self._route(shape, steps).load(self._pieces(stored), self._pieces(logical))
        return logical

    @property
    def _stays(self) -> bool:
        """Whether no element moves."""
        before, after = (axes.groups(side) for side in self.pattern.split("->"))
        return before == after

    def _route(self, shape: tuple[int, ...], steps: tuple[Step, ...]) -> Route:
        split, order, _ = axes.plan(self._units(shape), self.pattern, self.sizes)
        logical = axes.groups(self.pattern.split("->")[0])
        starts = accumulate((len(group) for group in logical[:-1]), initial=0)
        leads = (start for start, group in zip(starts, logical) if group[0] not in self.sizes)
        return Route(tuple(split), tuple(order), tuple(leads), steps)

    def _pieces(self, tensor: Tensor) -> NDArray[Any]:
        """What is moved, over the tensor's own memory: its elements as whole numbers, or pieces of its bytes."""
        size = tensor.element_size() if self.unit == ELEMENTS else self.unit // 8
        return tensor.reshape(-1).view(torch.uint8).numpy().view(f"u{size}")

    def _require(self, shape: tuple[int, ...]) -> None:
        why = self.refusal(shape)
        if why:
            raise FormatError(why)

    def _units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape counted in pieces; byte tensors are what is taken apart."""
        if self.unit == ELEMENTS:
            return shape
        return (*shape[:-1], shape[-1] * 8 // self.unit)
