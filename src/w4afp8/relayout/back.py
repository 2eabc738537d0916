"""A layout back into the canonical checkpoint, byte for byte: every tensor's digest is compared as it is written."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import torch

from w4afp8 import _version
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.journal import Journal
from w4afp8.checkpoint.reader import CONFIG, INDEX, refuse_link_out
from w4afp8.checkpoint.writer import Released, write_all
from w4afp8.convert import jobs as parallel
from w4afp8.convert import output, resources
from w4afp8.convert.resources import Needs
from w4afp8.convert.survey import headers_identity
from w4afp8.errors import CheckpointError, RecipeError, Stopped, raise_all
from w4afp8.events import Listener, ignore
from w4afp8.layouts import _record
from w4afp8.layouts._directory import LaidOut
from w4afp8.layouts._record import Record
from w4afp8.recipes._recipe import Resume
from w4afp8.relayout.plan import COPIES
from w4afp8.relayout.run import STATE
from w4afp8.validate import seal

PROOF = "every tensor and file has the digest that the canonical checkpoint had"


def prepare_back(source: Path, jobs: int | None = None) -> tuple[LaidOut, Needs, int]:
    """What can be refused from headers and kept files, what it takes, and how many experts at a time (default: by the
    cores).

    Raises: RecipeError, CheckpointError, FormatError.
    """
    jobs = parallel.default() if jobs is None else parallel.check(jobs)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such directory; give the directory of a layout")
    if not _record.is_laid_out(source):
        raise RecipeError(
            f"{source} holds no {_record.RECORD}: it has no layout to go back from; "
            "give a directory that `w4afp8 convert --layout NAME` wrote"
        )
    _check_copies(source, _record.read(source))
    laid = LaidOut(source)
    laid.require_complete()
    s = laid.split.sizes
    largest = 3 * s.hidden * s.intermediate // 2
    total = sum(said["bytes"] for said in (*laid.record.shards.values(), *laid.record.files.values()))
    resident = psutil.Process().memory_info().rss
    phases = {"one expert a job": jobs * COPIES * largest}
    return laid, Needs(resident, phases, output=total, state=0, remedy="lower --jobs"), jobs


def _check_copies(source: Path, record: Record) -> None:
    """Raises: CheckpointError naming every file that is not the one that was kept."""
    problems = []
    for name, digest in record.copies.items():
        path = source / name
        refuse_link_out(source, path)
        if not path.is_file():
            problems.append(f"{name}: not there; the directory is not complete, fetch it again")
        elif seal.digest(path) != digest:
            problems.append(f"{name}: not the bytes that it had; the directory is damaged, fetch it again")
    raise_all(problems, CheckpointError, f"{source} does not hold what the way back needs")


def restore(
    laid: LaidOut,
    needs: Needs,
    out: Path,
    jobs: int,
    *,
    resume: Resume = Resume.AUTO,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write the canonical directory, `jobs` experts at a time; the bytes do not depend on it.

    Raises: CheckpointError naming the first tensor or file whose bytes are not the recorded ones; Stopped when `stop`
    said so after a finished shard.  Run again to go on.
    """
    journal = Journal(out / _record.FOLDER / STATE)
    if resume is Resume.NEVER:
        output.forget(out, laid.folder, [out / n for n in (*laid.record.shards, *laid.record.files)], journal)
    output.check(out, laid.folder, _record.FOLDER, journal, resume)
    resources.check(needs, out)
    journal.open(
        {"tool": {"w4afp8": _version.__version__}, "canonical": laid.record.canonical,
         "source": [headers_identity(reader) for reader in laid.ranks]}
    )  # fmt: skip
    with journal.locked():
        for shard in laid.record.shards:
            finished = journal.record(shard) is not None and (out / shard).is_file()
            if finished and (out / shard).stat().st_size == laid.record.shards[shard]["bytes"]:
                continue
            if stop():
                raise Stopped(f"stopped before {shard}; what is finished is kept, run the same command to go on")
            began = time.monotonic()
            _write_shard(laid, shard, out / shard, jobs)
            journal.finish(shard, {})
            seconds = round(time.monotonic() - began, 3)
            listener({"event": "unit", "unit": shard, "layer": None, "seconds": seconds})
        _write_files(laid, out)
        journal.discard()
    listener({"event": "done", "bytes": needs.output, "peak_rss_bytes": resources.peak_resident_bytes()})


def _write_shard(laid: LaidOut, shard: str, path: Path, jobs: int) -> None:
    partial = path.with_name(path.name + atomic.PARTIAL)
    header = laid.header(shard).read_bytes()
    if hashlib.sha256(header).hexdigest() != laid.record.shards[shard]["header"]:
        raise CheckpointError(f"the kept header of {shard} has other bytes than it had; {laid.folder} is damaged")
    digests: dict[str, hashlib._Hash] = {}
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, memoryview(header), 0)
        released = Released(descriptor)
        with ThreadPoolExecutor(1) as beside:  # digests while the same bytes are written
            for name, offset, piece in _pieces(laid, shard, jobs):
                data = piece.numpy().data
                at_work = beside.submit(digests.setdefault(name, hashlib.sha256()).update, data)
                released.write(data, laid.specs[name].begin + offset)
                at_work.result()
        for name, spec in laid.specs.items():
            if spec.shard == shard:
                found = digests.get(name, hashlib.sha256()).hexdigest()
                if found != laid.record.tensors[name]:
                    raise CheckpointError(
                        f"{name}: its bytes are not those of the canonical checkpoint; {laid.folder} is damaged, "
                        "run w4afp8 validate on it, or fetch it again"
                    )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    atomic.commit(partial, path)


def _pieces(laid: LaidOut, shard: str, jobs: int) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(tensor, offset in it, bytes) of everything in a shard; each tensor's pieces in order."""
    here = {name for name, spec in laid.specs.items() if spec.shard == shard}
    for name in laid.others():
        offset = 0
        for piece in laid.pieces_of(name) if name in here else ():
            yield name, offset, piece
            offset += len(piece)
    tasks = [
        partial(laid.tensors, layer, expert, here)
        for layer in laid.layers.values() for expert, holders in enumerate(layer.experts)
        if any(spec.name in here for holder in holders for spec in holder.item.tensors)
    ]  # fmt: skip
    for held in parallel.in_parallel(jobs, tasks):
        for holder, tensors in held:
            for name, tensor in tensors.items():
                if name in here:
                    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
                    yield name, (holder.part or 0) * len(flat), flat


def _write_files(laid: LaidOut, out: Path) -> None:
    """Everything that is no shard, index and config last."""
    names = sorted(laid.record.files, key=lambda name: (name == CONFIG, name == INDEX, name))
    for name in names:
        said = laid.record.files[name]
        content = laid.folder / (_record.FILES if said["kept"] else ".") / name
        if not content.is_file():
            raise CheckpointError(f"{name}: not in {laid.folder}; the directory is not complete, fetch it again")
        refuse_link_out(laid.folder, content)
        with content.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                raise CheckpointError(f"{name}: not the bytes that it had; {laid.folder} is damaged, fetch it again")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        atomic.copy_file(content, out / name)
