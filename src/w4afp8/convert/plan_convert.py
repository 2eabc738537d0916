"""A whole checkpoint in another format: what is translated and what is copied, decided from headers alone.

The placing is quantize's own (`lay_out`); what differs is that a 4-bit matrix comes from a 4-bit matrix (`steps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from w4afp8 import families, formats
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.lay_out import input_scale_specs, is_misread, lay_out, suited
from w4afp8.convert.plan import Plan, Unit
from w4afp8.convert.steps import Step, in_place, made_of, put_together, taken_apart
from w4afp8.errors import FormatError, RecipeError, raise_all
from w4afp8.families._inventory import Item, format_of_experts, is_number, take_inventory
from w4afp8.families._spec import Family, Role, Sizes
from w4afp8.formats import _conversion
from w4afp8.formats._spec import WeightFormat
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
    scaled: bool = False  # the source has static activation scales

    def forms(self, step: Step) -> tuple[WeightFormat, WeightFormat]:
        """From which format to which a step moves."""
        return step.forms or (self.source.expert_weight, self.plan.target.expert_weight)

    def steps_of(self, unit: Unit) -> list[Step]:
        """In the order in which stacks are written."""
        return [step for step in self.steps if step.layer == unit.layer]


def plan_translation(reader: CheckpointReader, target: CheckpointFormat, shard_gb: float) -> Translation:
    """Decide every output tensor, from headers alone.

    Raises: RecipeError when the two formats hold different numbers, or the target needs what the source lacks;
    CheckpointError, FormatError when the source is not what its config promises.
    """
    if not target.written:
        raise RecipeError(f"{target.name} is read, not written: nothing that serves W4AFP8 or MXFP4 reads it")
    family = families.of(reader.config)
    d = family.dimensions(reader.config)
    family = families.arranged(family, d, reader.specs)
    target = suited(target, family)
    source = _source_format(reader, family, d, target)
    rule = source.input_scale
    inside = input_scale_specs(family, d, source) if rule.indexed and not rule.within else ()
    items = take_inventory(family, d, reader.specs, {spec.name: spec for spec in inside})
    experts = [item for item in items.values() if item.expected.role is Role.EXPERT]
    others = [i for i in experts if i.format is not None and i.format.name != source.name]
    raise_all(
        [f"{i.expected.name} stands in {i.format.name}" for i in others[:5] if i.format],
        FormatError,
        f"the experts are not all in {source.name}",
    )
    scaled = bool(rule.names) and (rule.indexed or _kept_scales(reader, source))
    wanted = target.input_scale
    if wanted.indexed and not scaled:
        raise RecipeError(
            f"{target.name} needs static activation scales, and {source.name} has none{_where_kept(reader, source)}; "
            f"calibrate them: w4afp8 quantize, of the original checkpoint, to {target.name}"
        )
    linears = _linear_steps(items.values(), target)
    moved = [item for item in items.values() if item.expected.role in (Role.EXPERT, Role.EXPERT_BIAS)]
    steps = (*_expert_steps(family, d, moved, target), *linears)
    becomes = {step.item: step.forms[1] if step.forms else target.expert_weight for step in steps}
    if any(len(step.sources) != len(step.targets) for step in steps):  # arranged anew: biases move too
        becomes |= {item.expected.name: becomes.get(item.expected.name, target.expert_weight) for item in moved}
    plan = lay_out(
        family, d, reader.config, items, target, becomes=becomes, made=_made(items, steps, target), recoded=frozenset(),
        mtp=Mtp.QUANTIZE, input_scales=_scales_as_stored(reader, family, d, source, target) if scaled else (),
        shard_bytes=int(shard_gb * 1e9),
    )  # fmt: skip
    if source.name == target.name and plan.config == reader.config:
        raise RecipeError(
            f"{experts[0].expected.name} stands in {target.name} already, and config.json says so: nothing to convert"
        )
    return Translation(reader, source, plan, _conditions(source, target, steps), steps, scaled)


def _expert_steps(family: Family, d: Sizes, moved: Sequence[Item], target: CheckpointFormat) -> Iterator[Step]:
    """Every expert from the arrangement that the source has to the target's."""
    stacked = any(item.expected.stack for item in moved)
    if stacked and not target.stacked:
        return taken_apart(moved, partial(family.expert, d))
    if target.stacked and not stacked:
        together = families.get(family.name).expected(d).values()
        return put_together(moved, [whole for whole in together if whole.stack], partial(family.expert, d))
    return in_place(item for item in moved if item.expected.role is Role.EXPERT)


def _linear_steps(items: Iterable[Item], target: CheckpointFormat) -> list[Step]:
    """What beside the experts changes format on the way.  Raises: RecipeError for what would be rounded."""
    steps, misread = [], []
    for item in items:
        if item.format is None or not is_misread(item, target):
            continue
        fitting = (w for w in target.linear_weights if _conversion.judge(item.format.name, w.name).refusal is None)
        becomes = next(fitting, None)
        if becomes is None:
            misread.append(f"{item.expected.name} stands in {item.format.name}")
        else:
            (step,) = in_place([item])
            steps.append(replace(step, forms=(item.format, becomes)))
    read_as = " or ".join(w.name for w in target.linear_weights)
    raise_all(
        misread[:5], RecipeError, f"engines that read {target.name} read these in {read_as}, and that would round them"
    )
    return steps


def _made(items: Mapping[str, Item], steps: Iterable[Step], target: CheckpointFormat) -> dict[str, list[TensorSpec]]:
    """Item -> its tensors; an item that is a part of another's tensors has none of its own."""
    made = made_of(steps, target.expert_weight)
    return {name: made.get(name, []) for name in items}


def _conditions(source: CheckpointFormat, target: CheckpointFormat, steps: Iterable[Step]) -> tuple[str, ...]:
    pairs = {(source.name, target.name)} | {(s.forms[0].name, s.forms[1].name) for s in steps if s.forms}
    registered = [pair for pair in sorted(pairs) if all(name in formats.names() for name in pair)]
    return tuple(dict.fromkeys(c for pair in registered for c in _conversion.judge(*pair).conditions))


def _where_kept(reader: CheckpointReader, source: CheckpointFormat) -> str:
    kept = source.input_scale.file
    return f": {reader.folder} holds no {kept}, where w4afp8 convert keeps them" if kept else ""


def _source_format(reader: CheckpointReader, family: Family, d: Sizes, target: CheckpointFormat) -> CheckpointFormat:
    """The format that the routed experts stand in, when the target holds the same numbers."""
    form = format_of_experts(family, d, reader.specs)
    if form is None:
        raise RecipeError(f"{reader.folder} has no routed experts, and {target.name} is a format of routed experts")
    first = next(e for e in family.expected(d).values() if e.role is Role.EXPERT)
    found = form.name
    stacks = bool(first.stack) or families.get(family.name).apart is not None
    refusal = _conversion.judge(found, target.name).refusal
    if refusal is None and found not in formats.checkpoints():
        refusal = f"whole checkpoints convert between {', '.join(formats.checkpoints())}"
    elif refusal is None and target.stacked and not stacks:
        refusal = f"engines that read {target.name} expect a layer's experts in one tensor; here each has its own"
    if refusal:
        others = _instead(found, target.name, stacks)
        raise RecipeError(f"{first.name} stands in {found}, and cannot become {target.name}: {refusal}{others}")
    return formats.checkpoint(found)


def _instead(found: str, refused: str, stacks: bool) -> str:
    """The other formats that could be asked for; `stacks`: whether experts can stand in one tensor."""
    judged = (name for name in formats.written() if name not in (found, refused))
    others = [
        name for name in judged
        if _conversion.judge(found, name).refusal is None and (stacks or not formats.checkpoint(name).stacked)
    ]  # fmt: skip
    return f".  It can become {', '.join(others)}, where the values allow (docs/format-matrix.md)" if others else ""


def _scales_as_stored(
    reader: CheckpointReader, family: Family, d: Sizes, source: CheckpointFormat, target: CheckpointFormat
) -> tuple[TensorSpec, ...]:
    """The target's activation scales, each of the dtype and shape that the source's has."""
    if target.input_scale.within:
        return ()
    made, before = (input_scale_specs(family, d, form) for form in (target, source))
    if source.input_scale.within:
        return made
    rule = source.input_scale
    found = reader.specs if rule.indexed else {s.name: s for s in read_header(reader.folder / rule.file)[0]}
    pairs = ((new, found[old.name]) for new, old in zip(made, before, strict=True))
    return tuple(replace(new, dtype=old.dtype, shape=old.shape) for new, old in pairs)


def _kept_scales(reader: CheckpointReader, source: CheckpointFormat) -> bool:
    """Whether the static scales of an earlier format were kept.  Raises: FormatError when only some were."""
    path = reader.folder / source.input_scale.file
    if not path.exists():
        return False
    family = families.of(reader.config)
    wanted = input_scale_specs(family, family.dimensions(reader.config), source)
    found = {spec.name: spec for spec in read_header(path)[0]}
    bad = [spec for spec in wanted if spec.name not in found or not is_number(found[spec.name])]
    raise_all(
        [f"{s.name}: expected {s.dtype} {list(s.shape)}" for s in bad[:5]],
        FormatError,
        f"{source.input_scale.file} does not hold the activation scales of this checkpoint; remove it or copy it again",
    )
    return True
