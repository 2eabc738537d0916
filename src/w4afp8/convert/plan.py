"""The plan's nouns: units, their shards, what each tensor comes from.  `lay_out.py` makes them, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.families._inventory import Item
from w4afp8.families._spec import Family, Sizes
from w4afp8.formats._target import CheckpointFormat
from w4afp8.recipes._recipe import Mtp

OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is finished or not, as a whole: one layer, or what stands outside the layers."""

    name: str
    layer: int | None
    shards: Mapping[str, tuple[TensorSpec, ...]]  # file name -> its tensors
    copies: tuple[str, ...]  # output tensors that are the source's, byte for byte (a fold may replace some)
    recoded: tuple[str, ...] = ()  # matrices that a 16-bit source has and the output's engines read in another format
    renamed: Mapping[str, str] = field(default_factory=dict)  # copies whose source has another name -> that name

    @property
    def span_bytes(self) -> int:
        return sum(spec.span_bytes for specs in self.shards.values() for spec in specs)


@dataclass(frozen=True, slots=True)
class RoleCount:
    """One line of the plan's table."""

    role: str
    tensors: int
    bytes_in: int
    bytes_out: int
    source_format: str
    output_format: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run will do."""

    family: Family
    dimensions: Sizes
    target: CheckpointFormat
    inventory: Mapping[str, Item]
    units: tuple[Unit, ...]
    mtp: Mtp
    config: dict[str, Any]
    input_scales: tuple[TensorSpec, ...]
    roles: tuple[RoleCount, ...] = field(default=())

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file, sorted by name, activation scales included where engines read them."""
        placed = {s.name: file for unit in self.units for file, specs in unit.shards.items() for s in specs}
        placed |= {s.name: self.target.input_scale.file for s in self._indexed_scales}
        return dict(sorted(placed.items()))

    @property
    def total_bytes(self) -> int:
        """What the index calls total_size: the bytes of all tensors, headers not counted."""
        return sum(unit.span_bytes for unit in self.units) + sum(s.span_bytes for s in self._indexed_scales)

    @property
    def _indexed_scales(self) -> tuple[TensorSpec, ...]:
        return self.input_scales if self.target.input_scale.indexed else ()
