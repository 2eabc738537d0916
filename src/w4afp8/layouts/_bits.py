"""A permutation of the bits of a 32-bit word, done to many words at once by few operations.

Bits that move equally far move together: a shift, a mask and an or for each distance.  Where bits first trade places
as their numbers do (bit i of the number for bit j: six operations), fewer distances are left; the cheapest way is
looked for once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray

WORD = 32
SWAPS = 2  # at most; a third never paid for itself
_own = threading.local()


@dataclass(frozen=True)
class Swap:
    """The bits of `mask` and those `distance` above them trade places; its own inverse."""

    distance: int
    mask: int

    cost = 6

    def places(self) -> list[int]:
        """Where each bit goes."""
        return [
            p + self.distance if self.mask >> p & 1
            else p - self.distance if p >= self.distance and self.mask >> p - self.distance & 1 else p
            for p in range(WORD)
        ]  # fmt: skip

    def inverse(self) -> Swap:
        return self

    def run(self, words: NDArray[numpy.uint32], spare: NDArray[numpy.uint32], _: NDArray[numpy.uint32]) -> None:
        numpy.right_shift(words, self.distance, out=spare)
        spare ^= words
        spare &= self.mask
        words ^= spare
        numpy.left_shift(spare, self.distance, out=spare)
        words ^= spare


@dataclass(frozen=True)
class Shifts:
    """Bit i goes to `bits[i]`."""

    bits: tuple[int, ...]

    def inverse(self) -> Shifts:
        return Shifts(tuple(sorted(range(WORD), key=self.bits.__getitem__)))

    @property
    def moves(self) -> list[tuple[int, int]]:
        """(how far up, which bits it gives) of every distance."""
        masks: dict[int, int] = {}
        for source, target in enumerate(self.bits):
            masks[target - source] = masks.get(target - source, 0) | 1 << target
        return sorted(masks.items())

    @property
    def cost(self) -> int:
        return sum(3 if distance else 2 for distance, _ in self.moves) - 1

    def run(
        self, words: NDArray[numpy.uint32], spare: NDArray[numpy.uint32], sum_: NDArray[numpy.uint32]
    ) -> None:
        for number, (distance, mask) in enumerate(self.moves):
            part = spare if number else sum_
            if distance:
                shift = numpy.left_shift if distance > 0 else numpy.right_shift
                shift(words, abs(distance), out=part)
                part &= mask
            else:
                numpy.bitwise_and(words, mask, out=part)
            if number:
                sum_ |= spare
        words[:] = sum_


Step = Swap | Shifts


@cache
def program(bits: tuple[int, ...]) -> tuple[Step, ...]:
    """The cheapest steps found that bring bit i to `bits[i]`; none for no bits."""
    best: tuple[int, tuple[Step, ...]] | None = None
    for count in range(SWAPS + 1) if bits else ():
        for swaps in itertools.product(_swaps(), repeat=count):
            places = list(range(WORD))
            for swap in swaps:
                moved = swap.places()
                places = [moved[place] for place in places]
            left = [0] * WORD
            for source, place in enumerate(places):
                left[place] = bits[source]
            rest = Shifts(tuple(left))
            steps: tuple[Step, ...] = swaps if left == list(range(WORD)) else (*swaps, rest)
            cost = sum(step.cost for step in steps)
            if best is None or cost < best[0]:
                best = cost, steps
    return best[1] if best else ()


def backwards(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The inverse."""
    return tuple(step.inverse() for step in reversed(steps))


def run(steps: Sequence[Step], flat: NDArray[Any]) -> None:
    """Do the steps to contiguous memory, in place."""
    if not steps:
        return
    words = flat.view(numpy.uint8).view(numpy.uint32)
    size = len(words)
    if size > len(getattr(_own, "spare", ())):
        _own.spare, _own.sum = numpy.empty(size, numpy.uint32), numpy.empty(size, numpy.uint32)
    for step in steps:
        step.run(words, _own.spare[:size], _own.sum[:size])


@cache
def _swaps() -> tuple[Swap, ...]:
    """One for each two bits of a bit's number."""
    found = []
    for i, j in itertools.combinations(range(WORD.bit_length() - 1), 2):
        mask = sum(1 << p for p in range(WORD) if p >> i & 1 and not p >> j & 1)
        found.append(Swap((1 << j) - (1 << i), mask))
    return tuple(found)
