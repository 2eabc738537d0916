"""Another encoding of 4-bit codes: `values[c]` is what a code c becomes, both nibbles of every byte alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy

from w4afp8.layouts._words import Step, Words

ONES = 0x11111111  # one of every nibble


@dataclass(frozen=True)
class Flip:
    """Every nibble xor `low`, or `high` where its top bit is set; neither changes that bit, or both do."""

    low: int
    high: int

    def inverse(self) -> Flip:
        return Flip(self.high, self.low) if self.low & 8 else self

    def run(self, words: Words, spare: Words, sum_: Words) -> None:
        if self.low != self.high:
            numpy.right_shift(words, 3, out=spare)
            spare &= ONES
            spare *= self.low ^ self.high
            words ^= spare
        if self.low:
            words ^= self.low * ONES


@dataclass(frozen=True)
class Table:
    """Any other encoding; several times slower."""

    values: tuple[int, ...]

    def inverse(self) -> Table:
        return Table(tuple(sorted(range(16), key=self.values.__getitem__)))

    def run(self, words: Words, spare: Words, sum_: Words) -> None:
        raw = words.view(numpy.uint8)
        raw[:] = _of_bytes(self.values)[raw]


@cache
def steps(values: tuple[int, ...]) -> tuple[Step, ...]:
    """The steps that recode, none where nothing changes.

    Where the codes below 8 and those from 8 on each have bits flipped, and so in every layout but one, no table is
    needed.
    """
    if values in ((), tuple(range(16))):
        return ()
    low, high = values[0], values[8] ^ 8
    if (low ^ high) & 8 == 0 and all(v == c ^ (high if c & 8 else low) for c, v in enumerate(values)):
        return (Flip(low, high),)
    return (Table(values),)


@cache
def _of_bytes(values: tuple[int, ...]) -> Words:
    return numpy.array([values[byte & 15] | values[byte >> 4] << 4 for byte in range(256)], dtype=numpy.uint8)
