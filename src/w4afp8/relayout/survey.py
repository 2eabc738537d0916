"""The source read once before anything is written: its digests, and whether the layout holds every scale."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from w4afp8.checkpoint.reader import CONFIG, INDEX, SINGLE, CheckpointReader
from w4afp8.checkpoint.spec import DTYPES
from w4afp8.convert.jobs import in_parallel
from w4afp8.convert.publish import side_files
from w4afp8.convert.survey import first_not_finite
from w4afp8.errors import FormatError, QuantizationError, W4AFP8Error, raise_all
from w4afp8.layouts._experts import Holder
from w4afp8.layouts._scales import FarScales
from w4afp8.layouts._spec import STACKS
from w4afp8.layouts._stack import Matrix, Stacker
from w4afp8.relayout.plan import Order
from w4afp8.validate import seal

OWN_FOLDER = "w4afp8"
# Files of the canonical directory that are kept for the way back, and do not stand in their place in a layout: what
# engines choose a format by, and what was said about other bytes.
NOT_IN_PLACE = (
    CONFIG, INDEX, "hf_quant_config.json", "quant_cfg.json", seal.VALIDATION, f"{OWN_FOLDER}/report.json",
    f"{OWN_FOLDER}/report.html",
)  # fmt: skip
# Said about the numbers, which stay the same: kept, and copied to its place too.
IN_BOTH = (seal.CARD, seal.SOURCE_CARD, f"{OWN_FOLDER}/evaluation.json")
MOST = 20
Progress = Callable[[str, int, int], None]  # what, done, of


def survey(order: Order, progress: Progress) -> dict[str, Any]:
    """`holding`: the first of the layout's that holds every scale; `shards`, `tensors`, `files`: the digests.

    Raises: QuantizationError naming scales that are not finite, FormatError naming what no holding holds.
    """
    holding = _choose(order, progress)
    folder, shards = order.reader.folder, list(order.reader.shards)
    paths = {name: folder / name for name in (*shards, *other_files(folder, shards))}
    found: dict[str, Any] = {"holding": holding, "shards": {}, "tensors": {}, "files": {}}
    for done, (name, (file, tensors)) in enumerate(seal.seal_files(paths), 1):
        said = {"bytes": file.bytes, "sha256": file.sha256}
        if name in shards:
            found["shards"][name] = {**said, "header": hashlib.sha256(header_bytes(paths[name])).hexdigest()}
            found["tensors"] |= tensors
        else:
            found["files"][name] = {**said, "kept": name in NOT_IN_PLACE or name in IN_BOTH}
        progress("digests", done, len(paths))
    found["tensors"] = dict(sorted(found["tensors"].items()))
    return found


def other_files(folder: Path, shards: list[str]) -> list[str]:
    """Everything of a checkpoint that is no shard of it: relative names."""
    own = [
        path.relative_to(folder).as_posix() for path in sorted((folder / OWN_FOLDER).rglob("*"))
        if path.is_file() and "/state/" not in path.as_posix()
    ]  # fmt: skip
    named = [name for name in (CONFIG, INDEX, "hf_quant_config.json", "quant_cfg.json") if (folder / name).is_file()]
    return sorted({*named, *side_files(folder), *own} - {*shards, SINGLE})


def header_bytes(path: Path) -> bytes:
    """The first bytes of a safetensors file, up to its data."""
    with path.open("rb") as file:
        prefix = file.read(8)
        return prefix + file.read(int.from_bytes(prefix, "little"))


def _choose(order: Order, progress: Progress) -> int:
    """Every scale looked at: are they numbers, and which holding holds them all?"""
    refused: list[list[str]] = [[] for _ in order.stackers]
    farthest = 0.0
    sick = [
        f"{spec} is {value}, expected a positive number" for spec in order.scales.values()
        if not 0 < (value := float(order.reader.read(spec.name).float().reshape(()))) < float("inf")
    ]  # fmt: skip
    looks = [
        partial(_look, order, f"{layer.stem}.{expert}", holders)
        for layer in order.layers.values() for expert, holders in enumerate(layer.experts)
    ]  # fmt: skip
    for done, (bad, whys) in enumerate(in_parallel(order.jobs, looks), 1):
        sick += bad
        for why, found in zip(refused, whys, strict=True):
            why += [str(each) for each in found] if len(why) < MOST else []
            farthest = max([farthest, *(each.distance for each in found)])
        progress("source values", done, len(looks))
    raise_all(sick[:MOST], QuantizationError, "the source holds numbers that are not finite; fetch it again")
    for number, why in enumerate(refused):
        if not why:
            return number
    raise_all(refused[-1][:MOST], FormatError, f"{order.layout.name} does not hold these scales{_remedy(farthest)}")
    raise AssertionError("some holding refused, so one reason was raised")


def _remedy(farthest: float) -> str:
    """What to do about scales that are `farthest` away at most, where anything can be done."""
    if not 0 < farthest < 1:
        return ""
    enough = math.ceil(farthest * 1e4) / 1e4
    return (
        f"; run it again with --tolerance {enough:g}, which all of them keep, if a scale may stand that far from the "
        "true one (docs/layouts.md says what that costs; the way back stays exact), or take another layout"
    )


@dataclass(frozen=True)
class _Refusal:
    """Why a stack of an expert is not held, and the tolerance that would hold it; 0 where none does."""

    says: str
    distance: float

    def __str__(self) -> str:
        return self.says


def _look(order: Order, name: str, holders: tuple[Holder, ...]) -> tuple[list[str], list[list[_Refusal]]]:
    """What of one expert is no number, and what each holding does not hold."""
    sick: list[str] = []
    matrices: dict[str, Matrix] = {}
    for holder in holders:
        codes = holder.item.tensors[0].name  # decide nothing here: not read
        tensors = holder.read(partial(_read_unless, codes, order.reader))
        for spec in holder.item.tensors[1:]:
            bad = first_not_finite(tensors[spec.name].reshape(-1).view(torch.uint8), spec.dtype)
            sick += [f"{spec}: element {bad} is NaN or infinite"] if bad is not None else []
        matrices |= holder.matrices(tensors)
    return sick, [[] if sick else _refusals(stacker, name, matrices) for stacker in order.stackers]


def _read_unless(codes: str, reader: CheckpointReader, name: str, part: int | None) -> torch.Tensor:
    """A tensor, or its part; zeros for the `codes`."""
    if name != codes:
        return reader.read(name, part)
    spec = reader.specs[name] if part is None else reader.specs[name].part(part)
    return torch.zeros(spec.shape, dtype=DTYPES[spec.dtype])


def _refusals(stacker: Stacker, name: str, matrices: Mapping[str, Matrix]) -> list[_Refusal]:
    """One for each stack that some rank does not hold."""
    found = []
    for stack in STACKS:
        whys: list[W4AFP8Error] = []
        for rank in range(stacker.split.tp):
            try:
                stacker.check(stack, matrices, rank)
            except W4AFP8Error as error:
                whys.append(error)
        if whys:
            distance = max(why.distance if isinstance(why, FarScales) else 0.0 for why in whys)
            found.append(_Refusal(f"{name} {stack}: {whys[0]}", distance))
    return found
