"""May these bytes be published?  The verdict of a validation, kept beside them and compared with them.

unvalidated   no validation, or one that did not test everything
failed        a validation found what is wrong
stale         a byte changed after the validation
proven        every promise was tested on these very bytes, and holds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.lineage import CHECKSUM, checksum
from w4afp8.checkpoint.reader import read_json
from w4afp8.errors import CheckpointError, ValidationError
from w4afp8.validate import carried, experts, fused, gemm, products, values
from w4afp8.validate.findings import ValidationReport
from w4afp8.validate.seal import VALIDATION, FileSeal, Seal, digests, read_seal, sealed_files

QUICK_SAMPLE = 4  # experts per layer
MOST_NAMED = 10  # changed files that a message lists
AGAIN = "run `w4afp8 validate DIR --against SOURCE` again"

THRESHOLDS: Mapping[str, float] = {
    "expert_output_error": experts.OUTPUT_ERROR,
    "expert_weight_error": experts.WEIGHT_ERROR,
    "scale_misfit": experts.SCALE_MISFIT,
    "nearest_code_steps": experts.MOST_STEPS,
    "router_fold_error": carried.ROUTER_FOLD_ERROR,
    "shared_fold_error": carried.SHARED_FOLD_ERROR,
    "routing_moved": carried.ROUTING_MOVED,
    "gemm_error": products.GEMM_ERROR,
    "layer_error": fused.LAYER_ERROR,
    "static_activation_error": gemm.STATIC_ERROR,
    "static_activations_clipped": gemm.CLIPPED,
    "fewest_codes": values.FEWEST_CODES,
    "largest_mean_code": values.LARGEST_MEAN_CODE,
}


class State(StrEnum):
    """What is known of a directory."""

    UNVALIDATED = "unvalidated"
    FAILED = "failed"
    STALE = "stale"
    PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Gate:
    """The state, why it is that one, the files' digests where they are known to hold, and when it was validated."""

    state: State
    why: tuple[str, ...]
    files: Mapping[str, FileSeal]
    at: str | None = None  # ISO 8601; None where nothing says it

    def __str__(self) -> str:
        named = "; ".join(self.why[:MOST_NAMED])
        more = len(self.why) - MOST_NAMED
        return f"{self.state}: {named}" + (f"; and {more} more" if more > 0 else "")


def write_verdict(folder: Path, report: ValidationReport, seal: Seal, source: Mapping[str, Any] | None = None) -> bool:
    """Write validation.json about the bytes of `seal`, which were read before the report was made.

    False when a better verdict about the same bytes is there already and is kept: a sample never replaces a proof.
    Raises: ValidationError when a file changed while it was being validated.
    """
    changed = list(_changed(folder, seal, deep=False))
    if changed:
        raise ValidationError(f"{folder}: changed while it was being validated: {'; '.join(changed[:MOST_NAMED])}")
    if report.passed and not report.proven and _is_proof_of(folder, seal):
        return False
    content = {
        **report.to_json(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": "full" if report.sample is None else "quick",
        "source": dict(source) if source else None,
        "thresholds": dict(THRESHOLDS),
        "seal": seal.to_json(),
    }
    path = folder / VALIDATION
    path.parent.mkdir(exist_ok=True)
    atomic.write_json(path, {CHECKSUM: checksum(content), **content})
    return True


def state(folder: Path, *, deep: bool = False, on_progress: Callable[[str, int, int], None] | None = None) -> Gate:
    """What is known of `folder`.

    A file whose size and time are those of the validation counts as unchanged, any other is read; `deep` reads all.
    """
    return _judge(folder, lambda seal: _changed(folder, seal, deep, on_progress))


def glance(folder: Path) -> tuple[Gate, int]:
    """`state` by names and sizes alone, and how many files have another time than then: no content is read."""
    touched: list[str] = []

    def compare(seal: Seal) -> Iterator[str]:
        here = sealed_files(folder)
        both = here.keys() & seal.files.keys()
        touched.extend(name for name in both if _is_touched(here[name], seal.files[name]))
        yield from _differences(here, seal)

    found = _judge(folder, compare)
    return found, len(touched)


def _judge(folder: Path, compare: Callable[[Seal], Iterator[str]]) -> Gate:
    path = folder / VALIDATION
    if not path.is_file():
        return Gate(State.UNVALIDATED, (f"no {VALIDATION}",), {})
    try:
        content = read_json(path)
        if content.pop(CHECKSUM, None) != checksum(content):
            return Gate(State.STALE, (f"{VALIDATION} itself was changed; {AGAIN}",), {})
        seal = read_seal(content.get("seal"))
    except CheckpointError as error:
        return Gate(State.STALE, (f"{error}; {AGAIN}",), {})
    changed, at = tuple(compare(seal)), content.get("at")
    if changed:
        return Gate(State.STALE, changed, {}, at)
    if not content.get("passed"):
        return Gate(State.FAILED, tuple(_broken(content)), seal.files, at)
    if not content.get("proven"):
        return Gate(State.UNVALIDATED, tuple(_untested(content)), seal.files, at)
    why = content.get("claim") or f"every check holds beside {content.get('against')}"
    return Gate(State.PROVEN, (str(why),), seal.files, at)


def proof_in(path: Path) -> tuple[Seal | None, str | None]:
    """What the verdict in a file is about, and why it proves nothing, if it does not.

    The bytes themselves may stand elsewhere; who asks compares them.
    """
    if not path.is_file():
        return None, f"no {VALIDATION}"
    try:
        content = read_json(path)
        if content.pop(CHECKSUM, None) != checksum(content):
            return None, f"{VALIDATION} was changed"
        seal = read_seal(content.get("seal"))
    except CheckpointError as error:
        return None, str(error)
    return seal, None if content.get("proven") else "its validation proved nothing"


def _changed(
    folder: Path, seal: Seal, deep: bool, on_progress: Callable[[str, int, int], None] | None = None
) -> Iterator[str]:
    """Each difference between the directory and the seal, in words; sizes before contents."""
    here = sealed_files(folder)
    yield from _differences(here, seal)
    same = sorted(name for name in here.keys() & seal.files.keys() if not _is_resized(here[name], seal.files[name]))
    suspect = [name for name in same if deep or _is_touched(here[name], seal.files[name])]
    for done, (name, found) in enumerate(zip(suspect, digests(here[name] for name in suspect)), 1):
        if found != seal.files[name].sha256:
            yield f"{name} has other bytes"
        if on_progress:
            on_progress("digests", done, len(suspect))


def _differences(here: Mapping[str, Path], seal: Seal) -> Iterator[str]:
    """What names and sizes tell."""
    for name in sorted(seal.files.keys() - here.keys()):
        yield f"{name} is gone"
    for name in sorted(here.keys() - seal.files.keys()):
        yield f"{name} was not there"
    for name in sorted(here.keys() & seal.files.keys()):
        if _is_resized(here[name], seal.files[name]):
            yield f"{name} has {here[name].stat().st_size} bytes, had {seal.files[name].bytes}"


def _is_resized(path: Path, seal: FileSeal) -> bool:
    return path.stat().st_size != seal.bytes


def _is_touched(path: Path, seal: FileSeal) -> bool:
    return path.stat().st_mtime_ns != seal.mtime_ns


def _is_proof_of(folder: Path, seal: Seal) -> bool:
    try:
        content = read_json(folder / VALIDATION)
        whole = content.pop(CHECKSUM, None) == checksum(content)
        return whole and bool(content.get("proven")) and read_seal(content.get("seal")).same_bytes(seal)
    except CheckpointError:
        return False


def _broken(content: Mapping[str, Any]) -> Iterator[str]:
    for check in content.get("checks", []):
        count = len(check.get("problems", [])) + check.get("more", 0)
        if count:
            first = check["problems"][0]
            many = f"{count} problems, first " if count > 1 else ""
            yield f"{check['name']}: {many}{first['who']}: found {first['found']}"


def _untested(content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("sample") is not None:
        yield f"only {content['sample']} experts per layer were compared; {AGAIN} without --quick or --sample"
    reasons: dict[str, list[str]] = {}
    for check in content.get("checks", []):
        if check.get("skipped"):
            reasons.setdefault(check["skipped"], []).append(check["name"])
    for why, names in reasons.items():
        yield f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} not tested: {why}"
