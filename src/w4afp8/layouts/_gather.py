"""How an order is applied: blocks that stay in a core's cache, each gathered by one table of indices.

A strided copy moves 16-bit words at the pace of its innermost axis, which in every order is 2 or 4 long; a gather by a
table takes the same time whatever the order is.  Tables are made once for each shape of block.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy
from numpy.typing import NDArray

from w4afp8.layouts import _words

Array = NDArray[Any]
BLOCK = 1 << 16  # elements gathered at once: they, their copy and the table of indices stay in the cache
TABLES = 32  # of block shapes; a run has fewer than ten
_own = threading.local()


@dataclass(frozen=True)
class Route:
    """From logical axes to stored ones, for one shape.

    `split`: the logical axes' sizes; `order`: which of them stands where in the stored tensor; `leads`: those that may
    be cut, the first of each group; `steps`: what is done to every 32-bit word after the gather.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    leads: tuple[int, ...]
    steps: tuple[_words.Step, ...] = ()

    def store(self, logical: Array, stored: Array) -> None:
        """Fill `stored` from `logical`; both contiguous, of one dtype, of any shape."""
        for source, target in self._blocks(logical, stored):
            flat = _flat(source, 0)
            found = target.reshape(-1) if target.flags.c_contiguous else _scratch(1, target.size, target.dtype)
            flat.take(_table(source.shape, self.order), out=found, mode="clip")
            _words.run(self.steps, found)
            if not target.flags.c_contiguous:
                numpy.copyto(target, found.reshape(target.shape))

    def load(self, stored: Array, logical: Array) -> None:
        """The inverse: fill `logical` from `stored`, which stays as it is."""
        steps = _words.backwards(self.steps)
        for target, source in self._blocks(logical, stored):
            flat = _flat(source, 0, copy=bool(steps))
            _words.run(steps, flat)
            found = target.reshape(-1) if target.flags.c_contiguous else _scratch(1, target.size, target.dtype)
            flat.take(_back(target.shape, self.order), out=found, mode="clip")
            if not target.flags.c_contiguous:
                numpy.copyto(target, found.reshape(target.shape))

    def _blocks(self, logical: Array, stored: Array) -> Iterator[tuple[Array, Array]]:
        """The same blocks of both, axes in each one's own order."""
        a = logical.reshape(self.split)
        b = stored.reshape([self.split[axis] for axis in self.order])
        for cut in _cuts(self.split, self.leads):
            yield a[cut], b[tuple(cut[axis] for axis in self.order)]


@lru_cache(TABLES)
def _cuts(split: tuple[int, ...], leads: tuple[int, ...]) -> tuple[tuple[slice, ...], ...]:
    """Slices of every block: whole but along `leads`, the last of which is the first to be whole."""
    steps = list(split)
    size = prod(length for axis, length in enumerate(split) if axis not in leads)
    for axis in reversed(leads):
        steps[axis] = max(1, min(split[axis], BLOCK // max(size, 1)))
        size *= steps[axis]
    slices = [
        [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]
        for length, step in zip(split, steps, strict=True)
    ]
    return tuple(itertools.product(*slices))


@lru_cache(TABLES)
def _table(shape: tuple[int, ...], order: tuple[int, ...]) -> NDArray[numpy.intp]:
    """Stored place -> logical place, of a block of this logical shape."""
    return numpy.arange(prod(shape), dtype=numpy.intp).reshape(shape).transpose(order).reshape(-1)


@lru_cache(TABLES)
def _back(shape: tuple[int, ...], order: tuple[int, ...]) -> NDArray[numpy.intp]:
    """Logical place -> stored place."""
    table = _table(shape, order)
    found = numpy.empty_like(table)
    found[table] = numpy.arange(len(table), dtype=numpy.intp)
    return found


def _flat(block: Array, number: int, copy: bool = False) -> Array:
    """The block's elements in a row: its own memory where it can be and no `copy` is wanted."""
    if block.flags.c_contiguous and not copy:
        return block.reshape(-1)
    found = _scratch(number, block.size, block.dtype)
    numpy.copyto(found.reshape(block.shape), block)
    return found


def _scratch(number: int, size: int, dtype: numpy.dtype[Any]) -> Array:
    """Memory of this thread, the same at every call: fresh pages would cost more than the gather."""
    held: dict[int, Array] = _own.__dict__.setdefault("held", {})
    wanted = size * dtype.itemsize
    if number not in held or held[number].nbytes < wanted:
        held[number] = numpy.empty(-(-wanted // 8), dtype=numpy.int64).view(numpy.uint8)
    return held[number][:wanted].view(dtype)
