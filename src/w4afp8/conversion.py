"""Convert one checkpoint between formats that hold the same numbers.  Read `run` first.

headers -> plan (refusals happen here) -> every value that the target might not hold -> unit by unit: unpack, pack, read
back, write -> publish.  Atomic and resumable as `pipeline` is, by the same journal.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from w4afp8 import _version, formats
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.journal import Journal
from w4afp8.checkpoint.lineage import SOURCE_PROOF, Lineage, Source, bare, write_lineage
from w4afp8.checkpoint.reader import CheckpointReader, read_json
from w4afp8.convert import jobs as parallel
from w4afp8.convert import output, resources
from w4afp8.convert.plan import Plan
from w4afp8.convert.plan_convert import Translation, plan_translation
from w4afp8.convert.publish import copy_side_files, last_files, side_files
from w4afp8.convert.resources import Needs
from w4afp8.convert.survey import headers_identity
from w4afp8.convert.translate import check_values, write_input_scales, write_unit
from w4afp8.errors import Stopped
from w4afp8.events import Listener, ignore
from w4afp8.recipes._recipe import Mtp, Resume
from w4afp8.record import INPUTS, RECORD, RECORD_FOLDER, bits_per_weight, tensors_by_role
from w4afp8.validate import gate
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import ABOUT, VALIDATION, digest

STATE = "state"
PROOF = "every matrix that moved was read back and holds the source's numbers; the rest are the source's bytes"
# Of the source's own folder: what stays true of the numbers.  Its record is carried with the new digests.
CARRIED = ("recipe.yaml", INPUTS)
# A matrix while it is translated: its bytes, its codes, the packed result, and both read back.
COPIES = 8


@dataclass(frozen=True, slots=True)
class Conversion:
    """A conversion that was planned and not refused."""

    translation: Translation
    needs: Needs
    out: Path
    jobs: int


def prepare(source: Path, format_name: str, out: Path, shard_gb: float, jobs: int | None = None) -> Conversion:
    """Read the headers and plan every tensor; nothing is written.  `jobs` experts at a time (default: by the cores).

    Raises: RecipeError, CheckpointError, FormatError with the reason.
    """
    target = formats.checkpoint(format_name)
    translation = plan_translation(CheckpointReader(source), target, shard_gb)
    weights = (
        translation.forms(step)[0].specs("", *place.shape) for step in translation.steps for place in step.sources
    )
    largest = max((sum(spec.span_bytes for spec in specs) for specs in weights), default=0)
    resident = psutil.Process().memory_info().rss
    jobs = parallel.default() if jobs is None else parallel.check(jobs)
    phases = {"one matrix a job": jobs * COPIES * largest}
    needs = Needs(resident, phases, output=translation.plan.total_bytes, state=0, remedy="lower --jobs")
    return Conversion(translation, needs, out, jobs)


def run(
    prepared: Conversion,
    *,
    resume: Resume = Resume.AUTO,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do what was prepared; what conversion.json says of it.

    Raises: any W4AFP8Error; Stopped when `stop` said so after a finished unit.  Run again to go on.
    """
    out, plan, reader = prepared.out, prepared.translation.plan, prepared.translation.reader
    journal = Journal(out / RECORD_FOLDER / STATE)
    if resume is Resume.NEVER:
        output.discard(out, reader.folder, plan, journal)
    output.check(out, reader.folder, RECORD_FOLDER, journal, resume)
    resources.check(prepared.needs, out)
    if journal.fingerprint is None:
        check_values(
            prepared.translation,
            prepared.jobs,
            lambda done, of: listener({"event": "progress", "unit": "source values", "done": done, "of": of}),
        )
    journal.open(_fingerprint(prepared))
    with journal.locked():
        output.check_finished(out, plan, journal)
        _write_units(prepared, journal, listener, stop)
        found = _publish(prepared, journal)
        journal.discard()
    listener({"event": "done", "bytes": plan.total_bytes, "peak_rss_bytes": resources.peak_resident_bytes()})
    return found


def _write_units(prepared: Conversion, journal: Journal, listener: Listener, stop: Callable[[], bool]) -> None:
    for unit in prepared.translation.plan.units:
        if journal.record(unit.name) is not None:
            continue
        if stop():
            raise Stopped(f"stopped before {unit.name}; everything before it is kept, run the same command to go on")
        began = time.monotonic()
        journal.finish(unit.name, {"digests": write_unit(prepared.translation, prepared.out, unit, prepared.jobs)})
        seconds = round(time.monotonic() - began, 3)
        listener({"event": "unit", "unit": unit.name, "layer": unit.layer, "seconds": seconds})


def _fingerprint(prepared: Conversion) -> dict[str, Any]:
    """What the output's bytes depend on."""
    plan, reader = prepared.translation.plan, prepared.translation.reader
    shards = {unit.name: list(unit.shards) for unit in plan.units}
    return {
        "tool": {"w4afp8": _version.__version__},
        "convert": {"from": prepared.translation.source.name, "to": plan.target.name, "shards": shards},
        "source": {"config": reader.config, "shards": headers_identity(reader)},
    }


def _publish(prepared: Conversion, journal: Journal) -> dict[str, Any]:
    """Activation scales, records, side files, what was done, the index, and config.json at the very end."""
    translation, out = prepared.translation, prepared.out
    plan, reader = translation.plan, translation.reader
    write_input_scales(translation, out)
    records = [journal.record(unit.name) or {} for unit in plan.units]
    digests = dict(sorted((name, digest) for record in records for name, digest in record["digests"].items()))
    own, theirs = out / RECORD_FOLDER, reader.folder / RECORD_FOLDER
    before = read_json(theirs / RECORD) if (theirs / RECORD).exists() else _new_record(plan)
    atomic.write_json(own / RECORD, _record(before, plan) | {"digests": digests})
    written = [f"{RECORD_FOLDER}/{RECORD}"] + ([plan.target.input_scale.file] if plan.input_scales else [])
    for name in CARRIED:
        if (theirs / name).is_file():
            atomic.copy_file(theirs / name, own / name)
            written.append(f"{RECORD_FOLDER}/{name}")
    (out / SOURCE_PROOF).unlink(missing_ok=True)  # of a run that broke off here
    if (reader.folder / VALIDATION).is_file() and gate.glance(reader.folder)[0].state is gate.State.PROVEN:
        atomic.copy_file(reader.folder / VALIDATION, out / SOURCE_PROOF)
        written.append(SOURCE_PROOF)
    sides = [name for name in side_files(reader.folder) if not name.startswith(f"{RECORD_FOLDER}/")]
    written += copy_side_files(out, plan, reader, sides)
    files = {name: digest(out / name) for name in written if name not in ABOUT}
    last = last_files(plan)
    files |= {name: hashlib.sha256(atomic.as_json(content)).hexdigest() for name, content in last.items()}
    found = _lineage(translation, digests, files)
    write_lineage(out, found)
    for name, content in last.items():
        atomic.write_json(out / name, content)
    return found.to_json()


def _lineage(translation: Translation, digests: Mapping[str, str], files: Mapping[str, str]) -> Lineage:
    plan, reader = translation.plan, translation.reader
    origin, rule = origin_of(reader.folder), translation.source.input_scale
    kept = read_header(reader.folder / rule.file)[0] if translation.scaled and not (rule.indexed or rule.within) else []
    return Lineage(
        tool={"name": "w4afp8", "version": _version.__version__},
        before=translation.source.name,
        after=plan.target.name,
        matrices=sum(place.matrices for step in translation.steps for place in step.sources),
        proof=PROOF,
        source=Source(
            name=str(origin["name"]),
            hub_id=origin["hub_id"],
            revision=origin["revision"],
            config=reader.config,
            tensors=dict(sorted(bare(reader.specs.values()).items())),
            kept=bare(kept),
        ),
        digests=digests,
        files=dict(sorted(files.items())),
    )


def _new_record(plan: Plan) -> dict[str, Any]:
    """Of a source that no `quantize` made: its numbers are its publisher's, and nothing of their making is known."""
    return {
        "tool": {"name": "w4afp8", "version": _version.__version__},
        "source": {"model_type": plan.config.get("model_type")},
        "mtp": Mtp.NATIVE.value,
        "mtp_layers": plan.dimensions.mtp_layers,
    }


def _record(theirs: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The source's record, with the bytes and formats that stand here now beside those that quantizing began with."""
    before, after = theirs.get("tensors_by_role") or {}, tensors_by_role(plan)
    for role, row in after.items():
        row["bytes_in"] = before.get(role, row).get("bytes_in")
    return {**theirs, "format": plan.target.name, "bits_per_weight": bits_per_weight(plan), "tensors_by_role": after}
