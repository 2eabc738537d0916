"""A whole checkpoint from one format to another with the same numbers: the plan, the checks, one unit.

The plan is quantize's own (`plan.lay_out`); what differs is where a 4-bit matrix comes from: it is unpacked from the
source, moved to the target's middle form and packed, and read back before it is written (`formats/_conversion.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w4afp8 import families, formats
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.execute import UnitWriter
from w4afp8.convert.plan import Plan, Unit, input_scale_specs, is_recoded, lay_out
from w4afp8.convert.state import read_tensors
from w4afp8.convert.survey import first_not_finite
from w4afp8.errors import FormatError, QuantizationError, RecipeError, W4AFP8Error, raise_all
from w4afp8.families._inventory import Item, take_inventory
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

    @property
    def experts(self) -> list[Item]:
        """The matrices that are translated; everything else is copied."""
        return [item for item in self.plan.inventory.values() if item.expected.role is Role.EXPERT]


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
    plan = lay_out(
        family, d, reader.config, items, target,
        quantized=frozenset(item.expected.name for item in experts), recoded=frozenset(), mtp=Mtp.QUANTIZE,
        input_scales=input_scale_specs(family, d, target) if kept else (), shard_bytes=int(shard_gb * 1e9),
    )  # fmt: skip
    return Translation(reader, source, plan, _conversion.judge(source.name, target.name).conditions)


def _source_format(
    reader: CheckpointReader, family: Family, d: Dimensions, target: CheckpointFormat
) -> CheckpointFormat:
    """The format that the routed experts stand in, when the target holds the same numbers."""
    first = next((e for e in family.expected(d).values() if e.role is Role.EXPERT), None)
    if first is None:
        raise RecipeError(f"{reader.folder} has no routed experts, and {target.name} is a format of routed experts")
    names = [first.stem + suffix for suffix in formats.suffixes()]
    near = {name: reader.specs[name] for name in names if name in reader.specs}
    found = formats.detect(first.stem, near, *first.shape).name
    refusal = _conversion.judge(found, target.name).refusal
    if found == target.name:
        refusal = "it stands in that format already"
    elif refusal is None and found not in formats.checkpoints():
        refusal = f"whole checkpoints convert between {', '.join(formats.checkpoints())}"
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


def check_values(translation: Translation, progress: Callable[[int, int], None]) -> None:
    """Read every scale of every expert; where the matrix of formats names a condition, translate and write nothing.

    Raises: QuantizationError naming every scale tensor that holds NaN or infinity, FormatError listing every matrix
    that the target does not hold, with its first number.
    """
    sick: list[str] = []
    unfit: list[str] = []
    for done, item in enumerate(translation.experts, 1):
        found = list(_not_finite(translation.reader, item))
        sick += found
        if translation.conditions and not found:
            try:
                _translate(translation, item)
            except W4AFP8Error as error:
                unfit.append(f"{item.expected.name}: {error}")
        progress(done, len(translation.experts))
    raise_all(_shorten(sick), QuantizationError, "the source holds numbers that are not finite; fetch it again")
    target = translation.plan.target.name
    raise_all(
        _shorten(unfit),
        FormatError,
        f"{target} does not hold these numbers (exact where {' and '.join(translation.conditions)})",
    )


def _not_finite(reader: CheckpointReader, item: Item) -> Iterator[str]:
    for spec in item.tensors[1:]:  # the first one holds codes, and every code is a number
        bad = first_not_finite(reader.read(spec.name).reshape(-1).view(torch.uint8), spec.dtype)
        if bad is not None:
            yield f"{spec}: element {bad} is NaN or infinite"


def _shorten(problems: list[str], most: int = 20) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]


def _translate(translation: Translation, item: Item) -> dict[str, Tensor]:
    stem, reader = item.expected.stem, translation.reader
    parts = {spec.name.removeprefix(stem): reader.read(spec.name) for spec in item.tensors}
    source, target = translation.source.expert_weight, translation.plan.target.expert_weight
    return {stem + suffix: t for suffix, t in _conversion.translate(source.unpack(parts), source, target).items()}


def write_unit(translation: Translation, out: Path, unit: Unit) -> dict[str, str]:
    """Write the shards of one unit, one matrix in memory at a time; the digests of its tensors."""
    with UnitWriter(out, unit) as writer:
        for item in translation.experts:
            if item.expected.layer == unit.layer:
                for name, tensor in _translate(translation, item).items():
                    writer.put(name, tensor)
        writer.copy_rest(translation.reader, {})
    return writer.digests


def write_input_scales(translation: Translation, out: Path) -> None:
    """Move every static activation scale to where the target has it, or keep it where no engine looks."""
    plan, reader = translation.plan, translation.reader
    if not plan.input_scales:
        return
    path = out / plan.target.input_scale.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path, plan.input_scales) as writer:
        for name, tensor in _input_scales(translation, reader):
            writer.put(name, tensor)


def _input_scales(translation: Translation, reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    rule = translation.source.input_scale
    plan = translation.plan
    there: tuple[TensorSpec, ...] = input_scale_specs(plan.family, plan.dimensions, translation.source)
    kept = {} if rule.indexed else read_tensors(reader.folder / rule.file)
    for old, new in zip(there, plan.input_scales, strict=True):
        yield new.name, reader.read(old.name) if rule.indexed else kept[old.name]
