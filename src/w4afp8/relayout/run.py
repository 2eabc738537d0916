"""A checkpoint into a layout: headers, then every value and digest, then unit by unit, then the files around them.

Atomic and resumable as `pipeline` is, by the same journal; config.json comes last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from w4afp8 import _version
from w4afp8.card.source import is_ours
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.journal import Journal
from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.convert import output, resources
from w4afp8.convert.survey import headers_identity
from w4afp8.errors import ResumeError, Stopped, raise_all
from w4afp8.events import Listener, ignore
from w4afp8.layouts import _record, _written
from w4afp8.layouts._record import Record
from w4afp8.layouts._split import folder_of
from w4afp8.layouts._stack import Stacker
from w4afp8.recipes._recipe import Resume
from w4afp8.relayout.plan import Order, Unit
from w4afp8.relayout.survey import IN_BOTH, header_bytes, other_files, survey
from w4afp8.relayout.write import write_kept, write_unit
from w4afp8.validate.seal import CARD

STATE = "state"
SURVEY = "survey"
PROOF = "every expert was read back from its stack and has the source's bytes; the rest are the source's bytes"


def lay_out(
    order: Order,
    *,
    resume: Resume = Resume.AUTO,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Do what was prepared; what layout.json says of it.

    Raises: any W4AFP8Error; Stopped when `stop` said so after a finished unit.  Run again to go on.
    """
    out, folder = order.out, order.reader.folder
    journal = Journal(out / _record.FOLDER / STATE)
    if resume is Resume.NEVER:
        discard(order, journal)
    output.check(out, folder, _record.FOLDER, journal, resume)
    resources.check(order.needs, out)
    found = journal.record(SURVEY) if journal.fingerprint is not None else None
    if found is None:
        found = survey(order, lambda what, done, of: listener(_progress(what, done, of)))
    journal.open(_fingerprint(order))
    with journal.locked():
        journal.finish(SURVEY, found)
        stacker = order.stackers[found["holding"]]
        record = _record_of(order, stacker, found)
        units = order.units(stacker)
        check_finished(out, units, journal)
        for unit in units:
            if journal.record(unit.name) is not None:
                continue
            if stop():
                raise Stopped(f"stopped before {unit.name}; what is finished is kept, run the same command to go on")
            began = time.monotonic()
            write_unit(order, stacker, unit, record)
            journal.finish(unit.name, {})
            seconds = round(time.monotonic() - began, 3)
            listener({"event": "unit", "unit": unit.name, "layer": unit.layer, "seconds": seconds})
        _publish(order, stacker, units, record)
        journal.discard()
    total = sum(spec.span_bytes for unit in units for spec in unit.specs)
    listener({"event": "done", "bytes": total, "peak_rss_bytes": resources.peak_resident_bytes()})
    return record


def _progress(what: str, done: int, of: int) -> dict[str, Any]:
    return {"event": "progress", "unit": what, "done": done, "of": of}


def _fingerprint(order: Order) -> dict[str, Any]:
    """What the output's bytes depend on."""
    split = order.split
    return {
        "tool": {"w4afp8": _version.__version__},
        "layout": {"name": order.layout.name, "version": order.layout.version, "tp": split.tp, "ep": split.ep,
                   "tolerance": order.stackers[0].tolerance, "shard_bytes": order.shard_bytes},
        "source": {"config": order.reader.config, "shards": headers_identity(order.reader)},
    }  # fmt: skip


def _record_of(order: Order, stacker: Stacker, found: dict[str, Any]) -> Record:
    split = stacker.split
    return Record(
        layout=order.layout.name,
        version=order.layout.version,
        read_by=order.layout.read_by,
        form=order.form,
        weight_format=order.weight.name,
        holding=found["holding"],
        tolerance=stacker.tolerance,
        tp=split.tp,
        ep=split.ep,
        pad=split.pad,
        sizes=split.described(),
        w13=order.layout.halves(),
        notes=split.notes(),
        canonical=_record.canonical_checksum({name: said["sha256"] for name, said in found["shards"].items()}),
        shards=found["shards"],
        tensors=found["tensors"],
        files=found["files"],
    )  # fmt: skip


def check_finished(out: Path, units: tuple[Unit, ...], journal: Journal) -> None:
    """Raises: ResumeError when a shard that the journal calls finished is gone or cut."""
    problems = []
    for unit in units:
        if journal.record(unit.name) is None:
            continue
        tags = [("", unit.carried), *((folder_of(r, len(unit.ranks)), shards) for r, shards in enumerate(unit.ranks))]
        for tag, shards in tags:
            for file, specs in shards.items():
                path = out / tag / file
                if not path.is_file() or path.stat().st_size <= sum(spec.span_bytes for spec in specs):
                    problems.append(f"{path.relative_to(out).as_posix()} is missing or too short")
    raise_all(problems, ResumeError, f"{out} lost what it had finished; begin anew with --resume never")


def _publish(order: Order, stacker: Stacker, units: tuple[Unit, ...], record: Record) -> None:
    """What the way back needs, side files, ranks, the record, index and config.json."""
    out, folder, split = order.out, order.reader.folder, stacker.split
    write_kept(order, stacker)
    for shard in record.shards:
        _put(out / _record.HEADERS / f"{shard}.header", header_bytes(folder / shard))
    for name, said in record.files.items():
        if said["kept"]:
            _copy(folder / name, out / _record.FILES / name)
        if not said["kept"] or (name in IN_BOTH and not (name == CARD and is_ours(folder / name))):
            _copy(folder / name, out / name)
    for rank in range(split.ranks) if split.ranks > 1 else ():
        here = out / folder_of(rank, split.ranks)
        mine = [spec for unit in units if unit.ranks for specs in unit.ranks[rank].values() for spec in specs]
        atomic.write_json(here / INDEX, _written.index(mine))
        atomic.write_json(here / CONFIG, _written.config(record, order.reader.config, split, rank))
    record.write(out)
    top = [spec for unit in units for specs in unit.carried.values() for spec in specs]
    atomic.write_json(out / INDEX, _written.index(top))
    atomic.write_json(out / CONFIG, _written.config(record, order.reader.config, split))


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.copy_file(source, target)


def discard(order: Order, journal: Journal) -> None:
    """Forget an unfinished run and what it wrote."""
    out, reader = order.out, order.reader
    copied = [out / name for name in other_files(reader.folder, list(reader.shards))]
    kept = [path for path in (out / _record.CANONICAL_FOLDER).rglob("*") if path.is_file()]
    named = [out / _record.RECORD, out / CONFIG, out / INDEX, *copied, *kept]
    output.forget(out, reader.folder, [*named, *out.rglob("*.safetensors"), *out.glob("rank-*/*.json")], journal)
