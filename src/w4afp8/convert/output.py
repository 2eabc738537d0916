"""The output directory before a run: new, unfinished and ours, or refused; nothing of a stranger's is ever removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.journal import Journal
from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.convert.plan import Plan
from w4afp8.convert.publish import side_files
from w4afp8.errors import CheckpointError, ResumeError, raise_all
from w4afp8.recipes._recipe import Resume


def check(out: Path, source: Path, record_folder: str, journal: Journal, resume: Resume) -> None:
    """Raises: ResumeError for a directory that is finished, a stranger's, or not what `resume` asks for;
    CheckpointError when it is the source itself or lies in it.
    """
    _refuse_source(out, source)
    if out.exists() and not out.is_dir():
        raise ResumeError(f"{out} is a file, expected a directory; choose another output (-o)")
    begun = journal.fingerprint is not None
    if (out / CONFIG).exists() and (out / INDEX).exists() and not begun:
        journal.discard()  # what a run that was killed in its last moment may have left
        raise ResumeError(f"{out} holds a finished checkpoint; choose another output (-o) or remove it first")
    if out.is_dir() and not begun and any(path.name != record_folder for path in out.iterdir()):
        raise ResumeError(f"{out} is not empty and holds no unfinished run of ours; choose another output (-o)")
    if resume is Resume.REQUIRED and not begun:
        raise ResumeError(f"{out} holds no unfinished run to resume")
    side_files(source)  # what cannot be copied at the end is refused now


def _refuse_source(out: Path, source: Path) -> None:
    if out.resolve() == source.resolve():
        raise CheckpointError(f"{out} is the source itself; choose another output (-o)")
    if out.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{out} lies in the source and would be taken for its files; choose another output (-o)")


def discard(out: Path, source: Path, plan: Plan, journal: Journal) -> None:
    """Forget an unfinished run and all it may have written.  Raises: as `forget`."""
    own = [plan.target.input_scale.file] if plan.target.input_scale.file else []
    named = [CONFIG, INDEX, *own, *plan.target.side_files(plan.config), *side_files(source)]
    forget(out, source, [*(out / name for name in named), *out.glob("model-*.safetensors")], journal)


def forget(out: Path, source: Path, written: Iterable[Path], journal: Journal) -> None:
    """Remove what an unfinished run has `written`; without one nothing is touched.

    The journal goes last: killed on the way, the next run finds shards missing and says so.
    Raises: CheckpointError when `out` is the source, which a run killed in its last moment leaves with a journal.
    """
    if journal.fingerprint is None:
        return
    _refuse_source(out, source)
    for path in [*written, *out.rglob(f"*{atomic.PARTIAL}")]:
        path.unlink(missing_ok=True)
    for folder in sorted((path for path in out.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # not empty: not only ours
            folder.rmdir()
    journal.discard()


def check_finished(out: Path, plan: Plan, journal: Journal) -> None:
    """Raises: ResumeError when a shard that the journal calls finished is gone or cut."""
    problems = [
        f"{file} is missing or too short"
        for unit in plan.units
        if journal.record(unit.name) is not None
        for file, specs in unit.shards.items()
        if not (out / file).is_file() or (out / file).stat().st_size <= sum(spec.span_bytes for spec in specs)
    ]
    raise_all(problems, ResumeError, f"{out} lost what it had finished; begin anew with --resume never")
