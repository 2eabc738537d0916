"""Every tensor of the output in a shard of a unit, once it is decided what becomes of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.plan import OUTSIDE, Plan, RoleCount, Unit
from w4afp8.errors import FormatError
from w4afp8.families._inventory import Item
from w4afp8.families._spec import PROJECTIONS, Dimensions, Family, Role
from w4afp8.formats._spec import WeightFormat
from w4afp8.formats._target import CheckpointFormat
from w4afp8.recipes._recipe import Mtp

Outputs = Mapping[str, list[TensorSpec]]  # item -> the tensors that are made of it

LINEAR = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT)


def is_recoded(item: Item, target: CheckpointFormat) -> bool:
    """Whether engines of the output read this matrix as other numbers than the source has it in."""
    expected = item.expected
    if not expected.matrix or expected.role not in LINEAR or item.format is None:
        return False
    return item.format.form is not target.linear_weight.form


def lay_out(
    family: Family,
    dimensions: Dimensions,
    config: Mapping[str, Any],
    items: Mapping[str, Item],
    target: CheckpointFormat,
    *,
    becomes: Mapping[str, WeightFormat],
    made: Outputs,
    recoded: frozenset[str],
    mtp: Mtp,
    input_scales: tuple[TensorSpec, ...],
    shard_bytes: int,
) -> Plan:
    """Place every tensor, once it is decided which matrices become another format and what is `made` of them.

    Raises: FormatError for a tensor that the target's engines cannot read as it stands.
    """
    carried = {name: _carried(item, target) for name, item in items.items() if name not in becomes}
    outputs = {name: [spec for spec, _ in carried[name]] if name in carried else made[name] for name in items}
    renamed = {spec.name: old for pairs in carried.values() for spec, old in pairs if spec.name != old}
    return Plan(
        family=family,
        dimensions=dimensions,
        target=target,
        inventory=items,
        units=_units(items, outputs, frozenset(becomes), renamed, recoded, dimensions, shard_bytes),
        mtp=mtp,
        config={**config, "quantization_config": target.quantization_config(config)},
        input_scales=input_scales,
        roles=_count_roles(items, outputs, becomes, target),
    )


def packed(items: Mapping[str, Item], becomes: Mapping[str, WeightFormat]) -> Outputs:
    """The tensors of matrices that keep their names."""
    return {name: form.specs(items[name].expected.stem, *items[name].expected.shape) for name, form in becomes.items()}


def _carried_as(item: Item, target: CheckpointFormat) -> WeightFormat | None:
    """The format that a copied matrix stands in afterwards: the same numbers, as the target's engines name them."""
    linear = target.linear_weight
    return linear if item.format is not None and item.format.form is linear.form else item.format


def _carried(item: Item, target: CheckpointFormat) -> list[tuple[TensorSpec, str]]:
    """The source's tensors under the names that the target's engines look for, each with its name in the source."""
    form = _carried_as(item, target)
    if form is None or form is item.format:
        return [(TensorSpec(spec.name, spec.dtype, spec.shape), spec.name) for spec in item.tensors]
    pairs = [
        (item.expected.stem + part.suffix, part, spec) for part, spec in zip(form.parts, item.tensors, strict=True)
    ]
    for name, part, spec in pairs:
        if spec.dtype not in part.dtypes:
            raise FormatError(f"{spec}: {target.name} reads {name} as {part.dtypes[0]}")
    return [(TensorSpec(name, spec.dtype, spec.shape), spec.name) for name, _, spec in pairs]


def _units(
    items: Mapping[str, Item],
    outputs: Outputs,
    changed: frozenset[str],
    renamed: Mapping[str, str],
    recoded: frozenset[str],
    d: Dimensions,
    shard_bytes: int,
) -> tuple[Unit, ...]:
    by_layer: dict[int | None, list[str]] = {layer: [] for layer in (None, *range(d.all_layers))}
    for name, item in items.items():
        by_layer[item.expected.layer].append(name)
    split = {layer: _shards([s for n in names for s in outputs[n]], shard_bytes) for layer, names in by_layer.items()}
    total = sum(len(shards) for shards in split.values())
    units, number = [], 0
    for layer, names in by_layer.items():
        shards = {}
        for specs in split[layer]:
            number += 1
            file = f"model-{number:05d}-of-{total:05d}.safetensors"
            shards[file] = tuple(replace(spec, shard=file) for spec in specs)
        copies = tuple(s.name for n in names if n not in changed for s in outputs[n])
        moved = {name: renamed[name] for name in copies if name in renamed}
        name = OUTSIDE if layer is None else f"layer-{layer:03d}"
        units.append(Unit(name, layer, shards, copies, tuple(n for n in names if n in recoded), moved))
    return tuple(units)


def _shards(specs: Iterable[TensorSpec], limit_bytes: int) -> list[list[TensorSpec]]:
    """Fill files in order up to the limit; a tensor larger than that has a file of its own."""
    shards: list[list[TensorSpec]] = [[]]
    used = 0
    for spec in specs:
        if shards[-1] and used + spec.span_bytes > limit_bytes:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.span_bytes
    return [shard for shard in shards if shard]


def input_scale_specs(
    family: Family, d: Dimensions, target: CheckpointFormat, native: Collection[int] = ()
) -> tuple[TensorSpec, ...]:
    """The static activation scales of every expert that is not left in the source's format."""
    rule = target.input_scale
    return tuple(
        TensorSpec(rule.tensor_name(family.expert(layer, expert), projection), "F32", (1,), rule.file)
        for layer in range(d.dense_layers, d.all_layers)
        if layer not in native
        for expert in range(d.experts)
        for projection in PROJECTIONS
    )


def _count_roles(
    items: Mapping[str, Item],
    outputs: Outputs,
    becomes: Mapping[str, WeightFormat],
    target: CheckpointFormat,
) -> tuple[RoleCount, ...]:
    counts: dict[tuple[str, str, str], list[int]] = {}
    for name, item in items.items():
        before = item.format.name if item.format else item.tensors[0].dtype.lower()
        kept = _carried_as(item, target)
        after = becomes[name].name if name in becomes else kept.name if kept else before
        line = counts.setdefault((item.expected.role.value, before, after), [0, 0, 0])
        line[0] += 1
        line[1] += item.span_bytes
        line[2] += sum(spec.span_bytes for spec in outputs[name])
    return tuple(
        RoleCount(role, n, size, new, before, after) for (role, before, after), (n, size, new) in sorted(counts.items())
    )
