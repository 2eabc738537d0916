"""Where a checkpoint keeps each routed expert's matrices: a name each, or a part of a tensor that experts share.

Made from the inventory alone, so that every family and every arrangement is read and made again by the same lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w4afp8 import families, formats
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import FormatError, RecipeError, raise_all
from w4afp8.families._inventory import Item, take_inventory
from w4afp8.families._spec import PROJECTIONS, Family, Role
from w4afp8.formats import _rows
from w4afp8.formats._spec import WeightFormat
from w4afp8.formats._target import InputScale
from w4afp8.layouts._spec import FORMS
from w4afp8.layouts._split import Sizes
from w4afp8.layouts._stack import Matrix

OWN = re.compile(r"(.*)\.(\d+)\.([^.]+)$")  # {experts}.{number}.{projection}
SHARED = re.compile(r"(.*)\.([^.]+)$")  # {experts}.{projections}
INPUT_SCALE = re.compile(r"(.*\.experts)\.(\d+)\.([^.]+)\.input_scale$")
Read = Callable[[str, int | None], Tensor]  # tensor name, part along its first axis


@dataclass(frozen=True)
class Holder:
    """One item of the inventory, or part of it, that holds these projections of one expert."""

    item: Item
    part: int | None
    projections: tuple[str, ...]

    @property
    def form(self) -> WeightFormat:
        assert self.item.format is not None
        return self.item.format

    def read(self, read: Read) -> dict[str, Tensor]:
        """The tensors, or their part, by name."""
        return {spec.name: read(spec.name, self.part) for spec in self.item.tensors}

    def matrices(self, tensors: Mapping[str, Tensor]) -> dict[str, Matrix]:
        """The matrices in those tensors, by projection."""
        stem = self.item.expected.stem
        weight = self.form.unpack({name.removeprefix(stem): tensor for name, tensor in tensors.items()})
        rows = _rows.split(weight, len(self.projections), self.item.expected.interleaved)
        return {name: Matrix.of(each) for name, each in zip(self.projections, rows, strict=True)}

    def write(self, matrices: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """The inverse of `matrices`."""
        mine = [matrices[name].weight(self.form.form) for name in self.projections]
        found = self.form.pack(_rows.join(mine, self.item.expected.interleaved))
        stem = self.item.expected.stem
        return {spec.name: _as(found[spec.name.removeprefix(stem)], spec) for spec in self.item.tensors}


@dataclass(frozen=True)
class Layer:
    """One layer's experts; `stem` is what their names begin with."""

    number: int
    stem: str
    experts: tuple[tuple[Holder, ...], ...]
    biases: tuple[tuple[Holder, ...], ...] = ()  # of every expert, or none at all


def layers_of(family: Family, items: Iterable[Item]) -> dict[int, Layer]:
    """Every layer whose experts stand in 4 bits.  Raises: RecipeError when none does, or some of a layer do not."""
    found: dict[int, dict[int, list[Holder]]] = {}
    stems: dict[int, str] = {}
    wide: dict[int, str] = {}
    biases: dict[int, dict[int, list[Holder]]] = {}
    for item in items:
        expected = item.expected
        if expected.layer is None or expected.role not in (Role.EXPERT, Role.EXPERT_BIAS):
            continue
        if expected.role is Role.EXPERT_BIAS:
            _add_bias(biases.setdefault(expected.layer, {}), item, family.projections)
            continue
        if item.format is None or item.format.form not in FORMS:
            wide[expected.layer] = f"{expected.name} stands in {item.format.name if item.format else 'no format'}"
            continue
        layer = found.setdefault(expected.layer, {})
        parts = SHARED.match(expected.stem) if expected.stack else OWN.match(expected.stem)
        assert parts is not None, f"{expected.name}: no expert's name"
        stems[expected.layer] = parts[1]
        own = expected.holds or (PROJECTIONS[family.projections.index(parts[parts.lastindex or 0])],)
        for number in range(expected.stack) if expected.stack else [int(parts[2])]:
            layer.setdefault(number, []).append(Holder(item, number if expected.stack else None, own))
    mixed = sorted(found.keys() & wide.keys())
    raise_all([wide[layer] for layer in mixed], RecipeError, "a layer has experts in 4 bits and others that are not")
    if not found:
        first = next(iter(wide.values()), "it has no routed experts")
        raise RecipeError(f"a layout holds experts in int4 with a scale per 128 inputs, or in MXFP4; here {first}")
    return {
        number: Layer(number, stems[number], _in_order(layer), _in_order(biases.get(number, {})))
        for number, layer in sorted(found.items())
    }


def _in_order(experts: Mapping[int, list[Holder]]) -> tuple[tuple[Holder, ...], ...]:
    return tuple(tuple(experts[number]) for number in sorted(experts))


def _add_bias(experts: dict[int, list[Holder]], item: Item, names: tuple[str, str, str]) -> None:
    expected = item.expected
    if expected.stack:
        held = tuple(name.removesuffix(".bias") for name in expected.holds)
        for number in range(expected.stack):
            experts.setdefault(number, []).append(Holder(item, number, held))
        return
    parts = OWN.match(expected.name.removesuffix(".bias"))
    assert parts is not None, f"{expected.name}: no expert's name"
    experts.setdefault(int(parts[2]), []).append(Holder(item, None, (PROJECTIONS[names.index(parts[3])],)))


def sizes_of(layers: Mapping[int, Layer]) -> tuple[str, WeightFormat, Sizes]:
    """The one form, weight format and size that all experts have.  Raises: FormatError when they differ."""
    kinds = set()
    for layer in layers.values():
        for expert in layer.experts:
            held = {name for holder in expert for name in holder.projections}
            if held != set(PROJECTIONS):
                raise FormatError(f"{layer.stem}: an expert has {sorted(held)}, expected {sorted(PROJECTIONS)}")
            for holder in expert:
                rows, columns = holder.item.expected.shape
                down = holder.projections == ("down_proj",)
                per = rows // len(holder.projections)
                hidden, intermediate = (rows, columns) if down else (columns, per)
                kinds.add((holder.form.name, len(layer.experts), hidden, intermediate))
    if len(kinds) > 1:
        raise FormatError(f"the experts are not alike: {sorted(kinds)}; a layout holds experts of one format and size")
    name, experts, hidden, intermediate = kinds.pop()
    form = formats.get(name)
    group = 32 if FORMS[form.form] == "mxfp4" else 128
    return FORMS[form.form], form, Sizes(experts, hidden, intermediate, group)


def static_scales(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Static activation scales among a checkpoint's tensors, by name: those that some checkpoint format writes."""
    words = {word for rule in _rules() for word in rule.names.values()}
    found = {name: INPUT_SCALE.match(name) for name in specs}
    return {name: specs[name] for name, match in found.items() if match and match[3] in words}


def scale_names(layer: Layer, expert: int) -> dict[str, str]:
    """Projection -> the name of its static scale, as the formats write it."""
    words = next(rule.names for rule in _rules())
    return {projection: f"{layer.stem}.{expert}.{word}.input_scale" for projection, word in words.items()}


def _rules() -> Iterator[InputScale]:
    """How formats name static scales that stand beside the weights."""
    for name in formats.checkpoints():
        rule = formats.checkpoint(name).input_scale
        if rule.names and not rule.within:
            yield rule


def inventory(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> tuple[Family, dict[str, Item]]:
    """Every tensor of a checkpoint with its meaning.  Raises: CheckpointError for what the config does not promise."""
    family = families.of(config)
    sizes = family.dimensions(config)
    family = families.arranged(family, sizes, specs)
    return family, take_inventory(family, sizes, specs, static_scales(specs))


def _as(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """In the dtype that it had; the caller compares the bytes."""
    dtype = DTYPES[spec.dtype]
    if tensor.dtype == dtype:
        return tensor
    floats = dtype.is_floating_point and tensor.dtype.is_floating_point and dtype.itemsize > 1
    return tensor.to(dtype) if floats else tensor.view(dtype)
