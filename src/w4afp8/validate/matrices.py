"""Every matrix and vector of a checkpoint under one name, however its experts share tensors.

An expert's matrices are called as where each has a name of its own (`experts.E.gate_proj.weight`), also in a family
that stacks them: so two checkpoints that arrange their experts otherwise are compared name by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.families._inventory import Item, take_inventory
from w4afp8.families._spec import Family, Role, Sizes
from w4afp8.formats import _rows
from w4afp8.formats._spec import Weight, WeightFormat, vector
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate.structure import scale_names


@dataclass(frozen=True, slots=True)
class Held:
    """Where one matrix or vector stands: which part of a stack, which of the matrices that share its rows."""

    item: Item
    index: int = 0
    share: int = 0

    @property
    def part(self) -> int | None:
        """Which part of the tensors along their first axis; None is all of them."""
        return self.index if self.item.expected.stack else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds, from its headers, or from a record of them."""

    config: Mapping[str, Any]
    family: Family
    sizes: Sizes
    format: CheckpointFormat  # of its experts
    items: Mapping[str, Item]

    @staticmethod
    def of(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], form: CheckpointFormat) -> Checkpoint:
        """Raises: CheckpointError, FormatError when the tensors are not those that the config promises."""
        family = families.of(config)
        sizes = family.dimensions(config)
        family = families.arranged(family, sizes, specs)
        rule = form.input_scale
        scales = scale_names(family, sizes, form) if rule.indexed and not rule.within else []
        items = take_inventory(family, sizes, specs, {name: TensorSpec(name, "F32", (1,)) for name in scales})
        return Checkpoint(config, family, sizes, form, items)

    def held(self) -> dict[str, Held]:
        """Every matrix and vector by its name."""
        return {name: held for item in self.items.values() for name, held in self.names(item)}

    def names(self, item: Item) -> Iterator[tuple[str, Held]]:
        """What an item holds, in the order in which it stands there."""
        expected = item.expected
        if not expected.stack:
            yield expected.name, Held(item)
            return
        assert expected.layer is not None
        own = expected.holds or (expected.name.rpartition(".")[2],)
        ending = ".weight" if expected.matrix else ""
        for index in range(expected.stack):
            stem = self.family.expert(self.sizes, expected.layer, index)
            for share, name in enumerate(own):
                yield f"{stem}.{name}{ending}", Held(item, index, share)


def arranged_for(family: Family, target: CheckpointFormat) -> Family:
    """The family as the engines of a format look for its experts: sharing tensors, or a name each."""
    if family.apart is None or target.stacked:
        return family
    return replace(family, expected=family.apart, apart=None)


def form_of(item: Item) -> WeightFormat:
    """A vector is a matrix of one column, stored as it is."""
    return item.format or vector(item.tensors[0].dtype)


def read_parts(reader: CheckpointReader, held: Held) -> dict[str, Tensor]:
    """The tensors of a matrix, or of those that share its rows, by suffix: on disk."""
    form = form_of(held.item)
    return {p.suffix: reader.read(spec.name, held.part) for p, spec in zip(form.parts, held.item.tensors, strict=True)}


def shares(item: Item, parts: Mapping[str, Tensor]) -> list[Weight]:
    """The matrices of one part of an item, each by itself."""
    expected = item.expected
    return _rows.split(form_of(item).unpack(parts), len(expected.holds) or 1, expected.interleaved)


class Shelf:
    """Reads matrices by name; what shares its rows with the last one is not read again."""

    def __init__(self, reader: CheckpointReader, checkpoint: Checkpoint) -> None:
        self.reader, self.held = reader, checkpoint.held()
        self._last: tuple[str, int, list[Weight]] | None = None

    def read(self, name: str) -> Weight:
        """One matrix in its middle form."""
        held = self.held[name]
        key = (held.item.expected.name, held.index)
        if self._last is None or self._last[:2] != key:
            self._last = None  # one at a time in memory
            self._last = (*key, shares(held.item, read_parts(self.reader, held)))
        return self._last[2][held.share]


def is_as_it_was(one: Item, other: Item) -> bool:
    """Whether two items have the same bytes where they hold the same numbers: one format, dtypes, arrangement."""
    if one.expected.stack != other.expected.stack or form_of(one).name != form_of(other).name:
        return one.format is not None and other.format is not None and _are_blocks(one, other)
    return _shapes(one) == _shapes(other)


def _are_blocks(one: Item, other: Item) -> bool:
    """FP8 blocks whose scales have the same width differ by their names alone."""
    assert one.format is not None and other.format is not None
    blocks = one.format.form is other.format.form and one.expected.role is not Role.EXPERT
    return blocks and one.format.bits == 8 and _shapes(one) == _shapes(other)


def _shapes(item: Item) -> list[tuple[str, tuple[int, ...]]]:
    return [(spec.dtype, spec.shape) for spec in item.tensors]
