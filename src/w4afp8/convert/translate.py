"""Carrying out a translation: every value looked at first, then one unit after the other.

A 4-bit matrix is read, moved to the target's middle form and packed, and read back before it is written
(`formats/_conversion.py`); what is not 4-bit is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.execute import UnitWriter
from w4afp8.convert.lay_out import input_scale_specs
from w4afp8.convert.plan import Unit
from w4afp8.convert.plan_convert import Translation
from w4afp8.convert.state import read_tensors
from w4afp8.convert.steps import Place, Step
from w4afp8.convert.survey import first_not_finite
from w4afp8.errors import FormatError, QuantizationError, W4AFP8Error, raise_all
from w4afp8.formats import _conversion, _rows
from w4afp8.formats._spec import Weight


def check_values(translation: Translation, progress: Callable[[int, int], None]) -> None:
    """Read every scale of every expert; where the matrix of formats names a condition, translate and write nothing.

    Raises: QuantizationError naming every scale tensor that holds NaN or infinity, FormatError listing every matrix
    that the target does not hold, with its first number.
    """
    sick: list[str] = []
    unfit: list[str] = []
    for done, step in enumerate(translation.steps, 1):
        found = list(_not_finite(translation, step))
        sick += found
        if translation.conditions and not found:
            try:
                for _ in _translate(translation, step):
                    pass
            except W4AFP8Error as error:
                unfit.append(f"{step.item}: {error}")
        progress(done, len(translation.steps))
    raise_all(_shorten(sick), QuantizationError, "the source holds numbers that are not finite; fetch it again")
    target = translation.plan.target.name
    raise_all(
        _shorten(unfit),
        FormatError,
        f"{target} does not hold these numbers (exact where {' and '.join(translation.conditions)})",
    )


def _not_finite(translation: Translation, step: Step) -> Iterator[str]:
    reader = translation.reader
    for place in step.sources:
        for part in translation.source.expert_weight.parts[1:]:  # the first one holds codes, and every code is a number
            spec = reader.specs[place.stem + part.suffix]
            bad = first_not_finite(reader.read(spec.name, place.part).reshape(-1).view(torch.uint8), spec.dtype)
            if bad is not None:
                where = f" of part {place.index}" if place.stack else ""
                yield f"{spec}: element {bad}{where} is NaN or infinite"


def _shorten(problems: list[str], most: int = 20) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]


def _translate(translation: Translation, step: Step) -> Iterator[tuple[Place, dict[str, Tensor]]]:
    """What stands in each of the step's targets: its place, and the tensors by suffix."""
    source, target = translation.source.expert_weight, translation.plan.target.expert_weight
    matrices: list[Weight] = []
    for place in step.sources:
        parts = {p.suffix: translation.reader.read(place.stem + p.suffix, place.part) for p in source.parts}
        matrices += _rows.split(source.unpack(parts), place.matrices, place.interleaved)
    for place in step.targets:
        mine, matrices = matrices[: place.matrices], matrices[place.matrices :]
        yield place, _conversion.translate(_rows.join(mine, place.interleaved), source, target)


def write_unit(translation: Translation, out: Path, unit: Unit) -> dict[str, str]:
    """Write the shards of one unit, one expert in memory at a time; the digests of its tensors."""
    with UnitWriter(out, unit) as writer:
        for step in translation.steps_of(unit):
            for place, tensors in _translate(translation, step):
                for suffix, tensor in tensors.items():
                    writer.put(place.stem + suffix, tensor, place.part)
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
