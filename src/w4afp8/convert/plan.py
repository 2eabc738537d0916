"""The plan: every tensor of the output, its shard and where it comes from, known from headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import RecipeError, raise_all
from w4afp8.families._inventory import Item
from w4afp8.families._spec import PROJECTIONS, Dimensions, Family, Role
from w4afp8.formats._spec import WeightFormat
from w4afp8.formats._target import CheckpointFormat
from w4afp8.numerics.groups import GROUP
from w4afp8.recipes._recipe import Mtp, Recipe

OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is finished or not, as a whole: one layer, or what stands outside the layers."""

    name: str
    layer: int | None
    shards: Mapping[str, tuple[TensorSpec, ...]]  # file name -> its tensors
    copies: tuple[str, ...]  # output tensors that are the source's, byte for byte (a fold may replace some)
    recoded: tuple[str, ...] = ()  # matrices that a 16-bit source has and the output's engines read in another format

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
    dimensions: Dimensions
    target: CheckpointFormat
    inventory: Mapping[str, Item]
    units: tuple[Unit, ...]
    mtp: Mtp
    config: dict[str, Any]
    input_scales: tuple[TensorSpec, ...]
    roles: tuple[RoleCount, ...] = field(default=())

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file, sorted by name, activation scales included."""
        placed = {s.name: file for unit in self.units for file, specs in unit.shards.items() for s in specs}
        placed |= {s.name: self.target.input_scale.file for s in self.input_scales}
        return dict(sorted(placed.items()))

    @property
    def total_bytes(self) -> int:
        """What the index calls total_size: the bytes of all tensors, headers not counted."""
        return sum(unit.span_bytes for unit in self.units) + sum(s.span_bytes for s in self.input_scales)


def make_plan(
    family: Family,
    dimensions: Dimensions,
    config: Mapping[str, Any],
    inventory: Mapping[str, Item],
    recipe: Recipe,
) -> Plan:
    """Decide every output tensor.

    Raises: RecipeError when the recipe asks for what the output format's engines cannot load.
    """
    target = formats.target(recipe.output.format)
    mtp = _decide_mtp(recipe.mtp, target, dimensions)
    new_config = family.without_mtp(config) if mtp is Mtp.DROP else dict(config)
    kept = dimensions if mtp is not Mtp.DROP else replace(dimensions, mtp_layers=0)
    items = {name: item for name, item in inventory.items() if item.expected.layer is None or
             item.expected.layer < kept.all_layers}  # fmt: skip
    native = set(range(kept.layers, kept.all_layers)) if mtp is Mtp.NATIVE else set()
    quantized = _quantized_names(items, recipe, target, native)
    becomes = dict.fromkeys(quantized, target.expert_weight) | {
        name: target.linear_weight for name, item in items.items() if _is_recoded(item, target)
    }
    outputs = {name: _output(item, becomes.get(name)) for name, item in items.items()}
    shard_bytes = int(recipe.output.shard_gb * 1e9)
    units = _units(items, outputs, quantized, frozenset(becomes) - quantized, kept, shard_bytes)
    new_config["quantization_config"] = target.quantization_config(new_config)
    return Plan(
        family=family,
        dimensions=kept,
        target=target,
        inventory=items,
        units=units,
        mtp=mtp,
        config=new_config,
        input_scales=_input_scales(family, kept, target, native),
        roles=_count_roles(items, outputs, becomes),
    )


def _decide_mtp(asked: Mtp, target: CheckpointFormat, d: Dimensions) -> Mtp:
    if d.mtp_layers == 0:
        return Mtp.QUANTIZE if asked is Mtp.AUTO else asked
    if asked is Mtp.AUTO:
        return Mtp.NATIVE if target.partial_experts else Mtp.QUANTIZE
    if asked is Mtp.NATIVE and target.partial_experts is None:
        raise RecipeError(
            f"mtp: native keeps the experts of layer {d.layers} in the source's format, but engines that read "
            f"{target.name} load every expert as int4; use mtp: quantize or mtp: drop"
        )
    return asked


def _quantized_names(
    items: Mapping[str, Item], recipe: Recipe, target: CheckpointFormat, native: set[int]
) -> frozenset[str]:
    """The matrices that become 4-bit.  Raises: RecipeError naming what the output format cannot hold."""
    matrices = {item.expected.stem: item for item in items.values() if item.expected.matrix}
    chosen = recipe.chosen(matrices)
    problems = [
        f"{stem} is a {matrices[stem].expected.role}; {target.name} holds only routed experts in 4 bits"
        for stem in sorted(chosen)
        if matrices[stem].expected.role is not Role.EXPERT
    ]
    experts = {s for s, item in matrices.items() if item.expected.role is Role.EXPERT}
    must = {s for s in experts if matrices[s].expected.layer not in native}
    left = sorted(must - chosen)
    if left and target.partial_experts is None:
        problems.append(
            f"{len(left)} of {len(must)} expert matrices are not targeted, first {left[0]}; engines that read "
            f"{target.name} load every routed expert as int4, so all or none"
        )
    for stem in sorted(chosen & must):
        n, k = matrices[stem].expected.shape
        if k % GROUP:
            problems.append(
                f"{stem} is [{n}, {k}]; {target.name} scales groups of {GROUP} inputs, and {k} is no multiple"
            )
    raise_all(problems[:20], RecipeError, f"the recipe's targets do not fit {target.name}")
    return frozenset(matrices[stem].expected.name for stem in chosen & must)


LINEAR = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT)


def _is_recoded(item: Item, target: CheckpointFormat) -> bool:
    """Whether engines of the output would misread this matrix as the source has it."""
    expected = item.expected
    return expected.matrix and expected.role in LINEAR and item.format is not target.linear_weight


def _output(item: Item, becomes: WeightFormat | None) -> list[TensorSpec]:
    if becomes is None:
        return [TensorSpec(spec.name, spec.dtype, spec.shape) for spec in item.tensors]
    n, k = item.expected.shape
    return becomes.specs(item.expected.stem, n, k)


def _units(
    items: Mapping[str, Item],
    outputs: Mapping[str, list[TensorSpec]],
    quantized: frozenset[str],
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
        copies = tuple(s.name for n in names if n not in quantized and n not in recoded for s in outputs[n])
        name = OUTSIDE if layer is None else f"layer-{layer:03d}"
        units.append(Unit(name, layer, shards, copies, tuple(n for n in names if n in recoded)))
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


def _input_scales(family: Family, d: Dimensions, target: CheckpointFormat, native: set[int]) -> tuple[TensorSpec, ...]:
    rule = target.input_scale
    return tuple(
        TensorSpec(rule.tensor_name(family.expert(layer, expert), projection), "F32", (1,), rule.file)
        for layer in range(d.dense_layers, d.all_layers)
        if layer not in native
        for expert in range(d.experts)
        for projection in PROJECTIONS
    )


def _count_roles(
    items: Mapping[str, Item], outputs: Mapping[str, list[TensorSpec]], becomes: Mapping[str, WeightFormat]
) -> tuple[RoleCount, ...]:
    counts: dict[tuple[str, str, str], list[int]] = {}
    for name, item in items.items():
        before = item.format.name if item.format else item.tensors[0].dtype.lower()
        after = becomes[name].name if name in becomes else before
        line = counts.setdefault((item.expected.role.value, before, after), [0, 0, 0])
        line[0] += 1
        line[1] += item.span_bytes
        line[2] += sum(spec.span_bytes for spec in outputs[name])
    return tuple(
        RoleCount(role, n, size, new, before, after) for (role, before, after), (n, size, new) in sorted(counts.items())
    )
