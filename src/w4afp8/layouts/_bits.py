"""A permutation of the bits of a 32-bit word, done to many words at once by few operations.

Bits that move equally far move together: a shift, a mask and an or for each distance.  Where bits first trade places
as their numbers do (bit i of the number for bit j: six operations), fewer distances are left; the cheapest way is
looked for once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property

import numpy

from w4afp8.layouts._words import Step, Words

WORD = 32
SWAPS = 2  # at most; a third never paid for itself


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

    def run(self, words: Words, spare: Words, sum_: Words) -> None:
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

    @cached_property
    def moves(self) -> list[tuple[int, int]]:
        """(how far up, which bits it gives) of every distance."""
        masks: dict[int, int] = {}
        for source, target in enumerate(self.bits):
            masks[target - source] = masks.get(target - source, 0) | 1 << target
        return sorted(masks.items())

    @cached_property
    def cost(self) -> int:
        return sum(3 if distance else 2 for distance, _ in self.moves) - 1

    def run(self, words: Words, spare: Words, sum_: Words) -> None:
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


@cache
def steps(bits: tuple[int, ...]) -> tuple[Step, ...]:
    """The cheapest steps found that bring bit i to `bits[i]`; none for no bits."""
    best: tuple[int, tuple[Swap | Shifts, ...]] | None = None
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
            found: tuple[Swap | Shifts, ...] = swaps if left == list(range(WORD)) else (*swaps, rest)
            cost = sum(step.cost for step in found)
            if best is None or cost < best[0]:
                best = cost, found
    return best[1] if best else ()


@cache
def _swaps() -> tuple[Swap, ...]:
    """One for each two bits of a bit's number."""
    found = []
    for i, j in itertools.combinations(range(WORD.bit_length() - 1), 2):
        mask = sum(1 << p for p in range(WORD) if p >> i & 1 and not p >> j & 1)
        found.append(Swap((1 << j) - (1 << i), mask))
    return tuple(found)
