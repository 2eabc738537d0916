"""Carrying out a translation: every value looked at first, then one unit after the other.

A 4-bit matrix is read, moved to the target's middle form and packed, and read back before it is written
(`formats/_conversion.py`); what is not 4-bit is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.execute import UnitWriter
from w4afp8.convert.jobs import in_parallel
from w4afp8.convert.lay_out import input_scale_specs
from w4afp8.convert.plan import Unit
from w4afp8.convert.plan_convert import Translation
from w4afp8.convert.state import read_tensors
from w4afp8.convert.steps import Place, Step, chains
from w4afp8.convert.survey import first_not_finite
from w4afp8.errors import FormatError, QuantizationError, W4AFP8Error, raise_all
from w4afp8.formats import _conversion, _rows
from w4afp8.formats._spec import Weight


def check_values(translation: Translation, jobs: int, progress: Callable[[int, int], None]) -> None:
    """Read every scale of every expert; where the matrix of formats names a condition, see that it holds.

    Raises: QuantizationError naming every scale tensor that holds NaN or infinity, FormatError listing every matrix
    that the target does not hold, with its first number.
    """
    sick: list[str] = []
    unfit: list[str] = []
    looks = [partial(_look, translation, step) for step in translation.steps]
    for done, (bad, misfit) in enumerate(in_parallel(jobs, looks), 1):
        sick += bad
        unfit += misfit
        progress(done, len(looks))
    unfit += _unequal_scales(translation)
    raise_all(_shorten(sick), QuantizationError, "the source holds numbers that are not finite; fetch it again")
    target = translation.plan.target.name
    raise_all(
        _shorten(unfit),
        FormatError,
        f"{target} does not hold these numbers (exact where {' and '.join(translation.conditions)})",
    )


def _look(translation: Translation, step: Step) -> tuple[list[str], list[str]]:
    """What is not finite among the scales of a step, and what of its numbers the target does not hold."""
    reader = translation.reader
    source, target = translation.forms(step)
    checked = source is not target and bool(_conversion.judge(source.name, target.name).conditions)
    sick, unfit = [], []
    try:
        for place in step.sources:
            codes, *scales = (reader.specs[place.stem + part.suffix] for part in source.parts)
            shape = codes.shape[1:] if place.stack else codes.shape
            parts = {source.parts[0].suffix: _no_codes(shape, codes.dtype)}
            for part, spec in zip(source.parts[1:], scales, strict=True):
                parts[part.suffix] = reader.read(spec.name, place.part)
                element = first_not_finite(parts[part.suffix].reshape(-1).view(torch.uint8), spec.dtype)
                if element is not None:
                    where = f" of part {place.index}" if place.stack else ""
                    sick.append(f"{spec}: element {element}{where} is NaN or infinite")
            if checked and not sick and target.form not in _conversion.ON_CODES:
                _conversion.check_scales(parts, source, target)
        if checked and not sick and target.form in _conversion.ON_CODES:
            for _ in _translate(translation, step):
                pass
    except W4AFP8Error as error:
        unfit.append(f"{step.item}: {error}")
    return sick, unfit


def _unequal_scales(translation: Translation) -> list[str]:
    """Experts whose gate and up have two scales, where the target's engines have one for both."""
    plan, rule = translation.plan, translation.source.input_scale
    if not (rule.within and plan.target.input_scale.indexed):
        return []
    found = []
    gates = [s for s in input_scale_specs(plan.family, plan.dimensions, translation.source) if ".gate_proj." in s.name]
    for gate in gates:
        up = gate.name.replace(".gate_proj.", ".up_proj.")
        one, other = (float(translation.reader.read(name)) for name in (gate.name, up))
        if one != other:
            found.append(f"{gate.name} is {one!r} and {up} is {other!r}; {plan.target.name} has one scale for both")
    return found


@lru_cache(4)
def _no_codes(shape: tuple[int, ...], dtype: str) -> Tensor:
    """Stands for codes that need not be read."""
    return torch.zeros(shape, dtype=DTYPES[dtype])


def _shorten(problems: list[str], most: int = 20) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]


def _translate(translation: Translation, step: Step) -> Iterator[tuple[Place, dict[str, Tensor]]]:
    """What stands in each of the step's targets: its place, and the tensors by suffix."""
    source, target = translation.forms(step)
    matrices: list[Weight] = []
    for place in step.sources:
        parts = {p.suffix: translation.reader.read(place.stem + p.suffix, place.part) for p in source.parts}
        matrices += _rows.split(source.unpack(parts), place.matrices, place.interleaved)
    for place in step.targets:
        mine, matrices = matrices[: place.matrices], matrices[place.matrices :]
        joined = _rows.join(mine, place.interleaved)
        if source is target:
            yield place, target.pack(joined)
        else:
            yield place, _conversion.translate(joined, source, target, _input_scale(translation, place))


def _input_scale(translation: Translation, place: Place) -> Tensor | None:
    """The static scale of a matrix's inputs, for targets that keep it beside the weight."""
    rule = translation.source.input_scale
    if not (translation.plan.target.input_scale.within and translation.scaled):
        return None
    stem, _, projection = place.stem.rpartition(".")
    name = rule.tensor_name(stem, projection)
    if rule.indexed:
        return translation.reader.read(name)
    path = translation.reader.folder / rule.file
    return _kept_scales(path, path.stat().st_mtime_ns)[name]


@lru_cache(1)
def _kept_scales(path: Path, mtime_ns: int) -> dict[str, Tensor]:
    return read_tensors(path)


def write_unit(translation: Translation, out: Path, unit: Unit, jobs: int) -> dict[str, str]:
    """Write the shards of one unit, one expert of each job in memory at a time; the digests of its tensors."""
    with UnitWriter(out, unit) as writer:
        tasks = [partial(_carry_out, translation, chain, writer) for chain in chains(translation.steps_of(unit))]
        tasks += [partial(writer.copy, name, translation.reader) for name in unit.copies]
        for _ in in_parallel(jobs, tasks):
            pass
    return writer.digests


def _carry_out(translation: Translation, chain: list[Step], writer: UnitWriter) -> None:
    for step in chain:
        for place, tensors in _translate(translation, step):
            for suffix, tensor in tensors.items():
                writer.put(place.stem + suffix, tensor, place.part)


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
        yield new.name, (reader.read(old.name) if rule.indexed else kept[old.name]).reshape(new.shape)
