"""Every tensor of the output in a shard of a unit, once it is decided what becomes of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.plan import OUTSIDE, Plan, RoleCount, Unit
from w4afp8.errors import RecipeError
from w4afp8.families._inventory import Item
from w4afp8.families._spec import PROJECTIONS, Family, Role, Sizes
from w4afp8.formats._spec import PlainWeight, WeightFormat
from w4afp8.formats._target import CheckpointFormat
from w4afp8.recipes._recipe import Mtp

Outputs = Mapping[str, list[TensorSpec]]  # item -> the tensors that are made of it

LINEAR = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT)


def is_recoded(item: Item, target: CheckpointFormat) -> bool:
    """Whether engines of the output read this matrix as other numbers than the source has it in."""
    expected = item.expected
    if not expected.matrix or expected.role not in LINEAR or item.format is None:
        return False
    return all(item.format.form is not form.form for form in target.linear_weights)


def is_misread(item: Item, target: CheckpointFormat) -> bool:
    """Whether engines of the output do not read a matrix beside the experts as it would be carried."""
    form = _carried_as(item, target)
    if form is None or form in target.linear_weights or item.expected.role is Role.EXPERT:
        return False
    return form.form is not PlainWeight or item.expected.role in LINEAR


def suited(target: CheckpointFormat, family: Family) -> CheckpointFormat:
    """The target with the FP8 blocks of the family first, where its engines read several."""
    own = formats.get(family.blocks)
    if own not in target.linear_weights:
        return target
    return replace(target, linear_weights=(own, *(form for form in target.linear_weights if form is not own)))


def lay_out(
    family: Family,
    dimensions: Sizes,
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

    Raises: RecipeError when only some of the linears have 16 bits and the target's config cannot say which.
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
        config=_config(family, config, target, _sixteen_bits(items, becomes, target)),
        input_scales=input_scales,
        roles=_count_roles(items, outputs, becomes, target),
    )


def _sixteen_bits(items: Mapping[str, Item], becomes: Mapping[str, WeightFormat], target: CheckpointFormat) -> bool:
    """Whether the linears beside the experts have 16 bits."""
    linears = {name: item for name, item in items.items() if item.expected.role in LINEAR and item.expected.matrix}
    forms = {name: becomes.get(name) or _carried_as(item, target) for name, item in linears.items()}
    plain = [name for name, form in forms.items() if form is not None and form.form is PlainWeight]
    if plain and len(plain) < len(linears) and target.plain_config:
        other = next(name for name in linears if name not in plain)
        raise RecipeError(
            f"{plain[0]} has 16 bits and {other} stands in {forms[other].name if forms[other] else 'no format'}; "  # type: ignore[union-attr]
            f"the config of {target.name} says one thing of all linears"
        )
    return bool(plain)


def _config(family: Family, config: Mapping[str, Any], target: CheckpointFormat, plain: bool) -> dict[str, Any]:
    """The source's config.json with what the target's engines choose by."""
    new = {key: value for key, value in config.items() if key not in ("quantization_config", "expert_dtype")}
    said = target.config_for(new, plain)
    if said:  # an explicit null crashes some loaders
        new["quantization_config"] = said
    if family.says_expert_dtype and target.expert_dtype:
        new["expert_dtype"] = target.expert_dtype
    return new


def packed(items: Mapping[str, Item], becomes: Mapping[str, WeightFormat]) -> Outputs:
    """The tensors of matrices that keep their names."""
    return {name: form.specs(items[name].expected.stem, *items[name].expected.shape) for name, form in becomes.items()}


def _carried_as(item: Item, target: CheckpointFormat) -> WeightFormat | None:
    """The format that a copied matrix stands in afterwards: the same numbers, as the target's engines name them."""
    if item.format is None or item.format in target.linear_weights:
        return item.format
    linear = next((form for form in target.linear_weights if form.form is item.format.form), item.format)
    same = [spec.dtype for spec in item.tensors] == [part.dtypes[0] for part in linear.parts]
    return linear if same else item.format


def _carried(item: Item, target: CheckpointFormat) -> list[tuple[TensorSpec, str]]:
    """The source's tensors under the names that the target's engines look for, each with its name in the source."""
    form = _carried_as(item, target)
    if form is None or form is item.format:
        return [(TensorSpec(spec.name, spec.dtype, spec.shape), spec.name) for spec in item.tensors]
    pairs = [(item.expected.stem + part.suffix, spec) for part, spec in zip(form.parts, item.tensors, strict=True)]
    return [(TensorSpec(name, spec.dtype, spec.shape), spec.name) for name, spec in pairs]


def _units(
    items: Mapping[str, Item],
    outputs: Outputs,
    changed: frozenset[str],
    renamed: Mapping[str, str],
    recoded: frozenset[str],
    d: Sizes,
    shard_bytes: int,
) -> tuple[Unit, ...]:
    by_layer: dict[int | None, list[str]] = {layer: [] for layer in (None, *range(d.all_layers))}
    for name, item in items.items():
        by_layer[item.expected.layer].append(name)
    listed = {layer: [spec for name in names for spec in outputs[name]] for layer, names in by_layer.items()}
    split = {layer: fill_shards(specs, shard_bytes) for layer, specs in listed.items()}
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


def fill_shards(specs: Iterable[TensorSpec], limit_bytes: int) -> list[list[TensorSpec]]:
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
    family: Family, d: Sizes, target: CheckpointFormat, native: Collection[int] = ()
) -> tuple[TensorSpec, ...]:
    """The static activation scales of every expert that is not left in the source's format."""
    rule = target.input_scale
    shape = () if rule.within else (1,)
    return tuple(
        TensorSpec(rule.tensor_name(family.expert(d, layer, expert), projection), "F32", shape, rule.file)
        for layer in range(d.dense_layers, d.all_layers)
        if layer not in native
        for expert in range(d.experts)
        for projection in PROJECTIONS
        if projection in rule.names
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
