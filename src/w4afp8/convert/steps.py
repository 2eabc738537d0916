"""What is translated at once: one expert's matrices, or one of them, from where they stand to where they go.

A place is data: the tensors' stem, which of a stack, whose rows.  Every arrangement of experts (a name each, stacked in
one tensor, gate and up fused) is a list of places, and a conversion between two arrangements reads and writes one
expert's part of each tensor, never the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.families._inventory import Item
from w4afp8.families._spec import Expected
from w4afp8.formats._spec import WeightFormat, vector


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight stands: the tensors `stem` + suffix, or part `index` of each where `stack` of them share it."""

    stem: str
    shape: tuple[int, int]
    matrices: int = 1  # that many matrices share the rows, in turn where interleaved
    interleaved: bool = False
    stack: int = 0
    index: int = 0

    @property
    def part(self) -> int | None:
        """Which part of the tensors along their first axis; None is all of them."""
        return self.index if self.stack else None

    def specs(self, form: WeightFormat) -> list[TensorSpec]:
        """The whole tensors that the place is in, as they are written."""
        return form.specs(self.stem, *self.shape, self.stack)


@dataclass(frozen=True, slots=True)
class Step:
    """The matrices of the sources, in order, are those of the targets."""

    item: str  # the (first) matrix of the inventory that it reads
    layer: int | None
    sources: tuple[Place, ...]
    targets: tuple[Place, ...]
    # From which format to which, where it is not the experts' own pair; twice the same: moved as it is.
    forms: tuple[WeightFormat, WeightFormat] | None = None


def in_place(items: Iterable[Item]) -> Iterator[Step]:
    """Every matrix under the name that it has; of stacked experts one after the other."""
    for item in items:
        for place in _places(item.expected):
            yield Step(item.expected.name, item.expected.layer, (place,), (place,))


def taken_apart(items: Iterable[Item], expert: Callable[[int, int], str]) -> Iterator[Step]:
    """Every expert's projections under names of their own, below `expert(layer, number)`, shared before or not."""
    for item in items:
        expected = item.expected
        if not expected.stack:
            yield from in_place([item])
            continue
        for place in _places(expected):
            own = _own_places(expected, expert, place.index)
            yield Step(expected.name, expected.layer, (place,), own, _as_stored(item))


def put_together(
    items: Iterable[Item], together: Iterable[Expected], expert: Callable[[int, int], str]
) -> Iterator[Step]:
    """Undo `taken_apart`: experts with names of their own into the tensors that they shall share."""
    by_stem = {item.expected.stem: item for item in items}
    for expected in together:
        for place in _places(expected):
            own = _own_places(expected, expert, place.index)
            first = by_stem[own[0].stem]
            yield Step(first.expected.name, expected.layer, own, (place,), _as_stored(first))


def _own_places(expected: Expected, expert: Callable[[int, int], str], index: int) -> tuple[Place, ...]:
    """Where the matrices of a shared tensor stand when each has a name of its own."""
    assert expected.layer is not None
    names = expected.holds or (expected.stem.rpartition(".")[2],)
    n, k = _shape(expected)
    return tuple(Place(f"{expert(expected.layer, index)}.{name}", (n // len(names), k)) for name in names)


def _as_stored(item: Item) -> tuple[WeightFormat, WeightFormat] | None:
    """A vector moves in the dtype that it has; a matrix as its format and the target's say."""
    if item.format is not None:
        return None
    form = vector(item.tensors[0].dtype)
    return form, form


def made_of(steps: Iterable[Step], form: WeightFormat) -> dict[str, list[TensorSpec]]:
    """Item -> the tensors that its steps begin; a stack counts once."""
    made: dict[str, list[TensorSpec]] = {}
    seen: set[str] = set()
    for step in steps:
        mine = made.setdefault(step.item, [])
        for place in step.targets:
            if place.stem not in seen:
                seen.add(place.stem)
                mine += place.specs(step.forms[1] if step.forms else form)
    return made


def chains(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that write into one tensor, in order, as a list each: between two lists nothing is shared."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        near = {id(chain): chain for place in step.targets if (chain := found.get(place.stem)) is not None}
        chain = next(iter(near.values())) if len(near) == 1 else [s for chain in near.values() for s in chain]
        chain.append(step)
        touched = chain if len(near) > 1 else [step]
        found |= {place.stem: chain for one in touched for place in one.targets}
    return list({id(chain): chain for chain in found.values()}.values())


def _places(expected: Expected) -> Iterator[Place]:
    shape = _shape(expected)
    for index in range(expected.stack or 1):
        yield Place(expected.stem, shape, len(expected.holds) or 1, expected.interleaved, expected.stack, index)


def _shape(expected: Expected) -> tuple[int, int]:
    return (expected.shape[0], expected.shape[1] if expected.matrix else 1)
