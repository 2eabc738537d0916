"""Steps that are done in place to many 32-bit words at once, in memory that stays in a core's cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

Words = NDArray[numpy.uint32]
WORD_BYTES = 4
_own = threading.local()


class Step(Protocol):
    """What is done to every word; `inverse` undoes it."""

    def inverse(self) -> Step: ...

    def run(self, words: Words, spare: Words, sum_: Words) -> None:
        """Change `words`; the others are as long, and may be left with anything."""


def backwards(steps: Sequence[Step]) -> tuple[Step, ...]:
    """What undoes the steps."""
    return tuple(step.inverse() for step in reversed(steps))


def run(steps: Sequence[Step], flat: NDArray[Any]) -> None:
    """Do the steps to contiguous memory; bytes after the last whole word are done as a word with zeros."""
    if not steps:
        return
    raw = flat.view(numpy.uint8)
    whole = raw.size // WORD_BYTES * WORD_BYTES
    _run(steps, raw[:whole].view(numpy.uint32))
    if whole < raw.size:
        last = numpy.zeros(WORD_BYTES, numpy.uint8)
        last[: raw.size - whole] = raw[whole:]
        _run(steps, last.view(numpy.uint32))
        raw[whole:] = last[: raw.size - whole]


def _run(steps: Sequence[Step], words: Words) -> None:
    if words.size > len(getattr(_own, "spare", ())):
        _own.spare, _own.sum = (numpy.empty(words.size, numpy.uint32) for _ in range(2))
    for step in steps:
        step.run(words, _own.spare[: words.size], _own.sum[: words.size])
