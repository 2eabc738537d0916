"""A whole checkpoint in another format: what is translated and what is copied, decided from headers alone.

The placing is quantize's own (`lay_out`); what differs is that a 4-bit matrix comes from a 4-bit matrix (`steps`).
"""

from __future__ import annotations

from dataclasses import dataclass

from w4afp8 import families, formats
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert.lay_out import input_scale_specs, is_recoded, lay_out
from w4afp8.convert.plan import Plan, Unit
from w4afp8.convert.steps import Step, in_place, made_of, taken_apart
from w4afp8.errors import FormatError, RecipeError, raise_all
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Dimensions, Family, Role
from w4afp8.formats import _conversion
from w4afp8.formats._target import CheckpointFormat
from w4afp8.recipes._recipe import Mtp


@dataclass(frozen=True, slots=True)
class Translation:
    """Everything that is decided before the first byte is written."""

    reader: CheckpointReader
    source: CheckpointFormat
    plan: Plan
    conditions: tuple[str, ...]  # what every value must fulfil; empty when none can be refused
    steps: tuple[Step, ...]  # what is translated; everything else is copied

    def steps_of(self, unit: Unit) -> list[Step]:
        """In the order in which stacks are written."""
        return [step for step in self.steps if step.layer == unit.layer]


def plan_translation(reader: CheckpointReader, target: CheckpointFormat, shard_gb: float) -> Translation:
    """Decide every output tensor, from headers alone.

    Raises: RecipeError when the two formats hold different numbers, or the target needs what the source lacks;
    CheckpointError, FormatError when the source is not what its config promises.
    """
    family = families.of(reader.config)
    d = family.dimensions(reader.config)
    source = _source_format(reader, family, d, target)
    rule = source.input_scale
    inside = {spec.name: spec for spec in input_scale_specs(family, d, source)} if rule.indexed else {}
    items = take_inventory(family, d, reader.specs, inside)
    experts = [item for item in items.values() if item.expected.role is Role.EXPERT]
    others = [i for i in experts if i.format is not None and i.format.name != source.name]
    raise_all(
        [f"{i.expected.name} stands in {i.format.name}" for i in others[:5] if i.format],
        FormatError,
        f"the experts are not all in {source.name}",
    )
    misread = [item for item in items.values() if is_recoded(item, target)]
    raise_all(
        [f"{i.expected.name} stands in {i.format.name}" for i in misread[:5] if i.format],
        RecipeError,
        f"engines that read {target.name} read these in {target.linear_weight.name}, and that would round them",
    )
    kept = rule.indexed or _kept_scales(reader, source)
    if target.input_scale.indexed and not kept:
        raise RecipeError(
            f"{target.name} needs static activation scales, and {source.name} has none: {reader.folder} holds no "
            f"{rule.file}, where w4afp8 convert keeps them; quantize the original checkpoint to {target.name} instead"
        )
    steps = tuple(in_place(experts) if target.stacked else taken_apart(experts, family.expert))
    plan = lay_out(
        family, d, reader.config, items, target,
        becomes={item.expected.name: target.expert_weight for item in experts},
        made=made_of(steps, target.expert_weight), recoded=frozenset(), mtp=Mtp.QUANTIZE,
        input_scales=input_scale_specs(family, d, target) if kept else (), shard_bytes=int(shard_gb * 1e9),
    )  # fmt: skip
    return Translation(reader, source, plan, _conversion.judge(source.name, target.name).conditions, steps)


def _source_format(
    reader: CheckpointReader, family: Family, d: Dimensions, target: CheckpointFormat
) -> CheckpointFormat:
    """The format that the routed experts stand in, when the target holds the same numbers."""
    first = next((e for e in family.expected(d).values() if e.role is Role.EXPERT), None)
    if first is None:
        raise RecipeError(f"{reader.folder} has no routed experts, and {target.name} is a format of routed experts")
    names = [first.stem + suffix for suffix in formats.suffixes()]
    near = {name: reader.specs[name] for name in names if name in reader.specs}
    n, k = first.shape
    found = formats.detect(first.stem, near, n, k, first.stack).name
    refusal = _conversion.judge(found, target.name).refusal
    if found == target.name:
        refusal = "it stands in that format already"
    elif refusal is None and found not in formats.checkpoints():
        refusal = f"whole checkpoints convert between {', '.join(formats.checkpoints())}"
    elif refusal is None and target.stacked and not first.stack:
        refusal = f"engines that read {target.name} expect a layer's experts in one tensor; here each has its own"
    if refusal:
        raise RecipeError(f"{first.name} stands in {found}, and cannot become {target.name}: {refusal}")
    return formats.checkpoint(found)


def _kept_scales(reader: CheckpointReader, source: CheckpointFormat) -> bool:
    """Whether the static scales of an earlier format were kept.  Raises: FormatError when only some were."""
    path = reader.folder / source.input_scale.file
    if not path.exists():
        return False
    family = families.of(reader.config)
    wanted = input_scale_specs(family, family.dimensions(reader.config), source)
    found = {spec.name: spec for spec in read_header(path)[0]}
    bad = [s for s in wanted if s.name not in found or (found[s.name].dtype, found[s.name].shape) != (s.dtype, s.shape)]
    raise_all(
        [f"{s.name}: expected {s.dtype} {list(s.shape)}" for s in bad[:5]],
        FormatError,
        f"{source.input_scale.file} does not hold the activation scales of this checkpoint; remove it or copy it again",
    )
    return True
