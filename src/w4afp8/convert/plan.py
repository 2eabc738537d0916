"""The plan: every tensor of the output, its shard and where it comes from, known from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import FormatError, RecipeError, raise_all
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
    return lay_out(
        family, kept, new_config, items, target, quantized=quantized,
        recoded=frozenset(name for name, item in items.items() if is_recoded(item, target)), mtp=mtp,
        input_scales=input_scale_specs(family, kept, target, native), shard_bytes=int(recipe.output.shard_gb * 1e9),
    )  # fmt: skip


def lay_out(
    family: Family,
    dimensions: Dimensions,
    config: Mapping[str, Any],
    items: Mapping[str, Item],
    target: CheckpointFormat,
    *,
    quantized: frozenset[str],
    recoded: frozenset[str],
    mtp: Mtp,
    input_scales: tuple[TensorSpec, ...],
    shard_bytes: int,
) -> Plan:
    """Place every tensor, once it is decided which matrices stand in the target's 4-bit format.

    Raises: FormatError for a tensor that the target's engines cannot read as it stands.
    """
    becomes = dict.fromkeys(quantized, target.expert_weight) | dict.fromkeys(recoded, target.linear_weight)
    carried = {name: _carried(item, target) for name, item in items.items() if name not in becomes}
    outputs = {
        name: [spec for spec, _ in carried[name]] if name in carried else _packed(item, becomes[name])
        for name, item in items.items()
    }
    renamed = {spec.name: old for pairs in carried.values() for spec, old in pairs if spec.name != old}
    new_config = {**config, "quantization_config": target.quantization_config(config)}
    return Plan(
        family=family,
        dimensions=dimensions,
        target=target,
        inventory=items,
        units=_units(items, outputs, quantized, renamed, recoded, dimensions, shard_bytes),
        mtp=mtp,
        config=new_config,
        input_scales=input_scales,
        roles=_count_roles(items, outputs, becomes, target),
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


def is_recoded(item: Item, target: CheckpointFormat) -> bool:
    """Whether engines of the output read this matrix as other numbers than the source has it in."""
    expected = item.expected
    if not expected.matrix or expected.role not in LINEAR or item.format is None:
        return False
    return item.format.form is not target.linear_weight.form


def _packed(item: Item, becomes: WeightFormat) -> list[TensorSpec]:
    n, k = item.expected.shape
    return becomes.specs(item.expected.stem, n, k)


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
    outputs: Mapping[str, list[TensorSpec]],
    quantized: frozenset[str],
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
        copies = tuple(s.name for n in names if n not in quantized and n not in recoded for s in outputs[n])
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
    outputs: Mapping[str, list[TensorSpec]],
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
