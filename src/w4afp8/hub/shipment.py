"""What is sent, in which order: card and side files, then weights, then the index and config.json.

A repository that has a config but not all weights is what breaks people; until the last commit there is none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import CheckpointError, HubError, raise_all
from w4afp8.validate.config import WEIGHT_FILES
from w4afp8.validate.seal import ABOUT, FileSeal, digest, sealed_files

LARGEST_FILE_BYTES = 200 * 10**9  # the Hub's limit for one file
LAST = (INDEX, CONFIG)
# Weights that one commit holds at most, so that a push that breaks off has its finished part committed: whatever the
# storage's protocol keeps of an unfinished upload, what is committed is not sent again.
COMMIT_BYTES = 50 * 10**9
RANK = re.compile(r"rank-\d+-of-\d+/[^/]+$")  # of a runtime layout


@dataclass(frozen=True, slots=True)
class File:
    """One file to be published."""

    name: str
    path: Path
    bytes: int
    sha256: str

    def git_id(self) -> str:
        """The digest by which git, and so the Hub, knows a small file: SHA-1 of 'blob SIZE\\0' and the content."""
        found = hashlib.sha1(b"blob %d\0" % self.path.stat().st_size, usedforsecurity=False)
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Phase:
    """Files that are committed before the next phase begins."""

    title: str
    files: tuple[File, ...]


def check(folder: Path) -> None:
    """Raises: CheckpointError for a directory that cannot be loaded, HubError for files that the Hub would refuse."""
    for name in LAST:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: found no {name}; an unfinished checkpoint is not published")
    raise_all(_refusals(_published(folder)), HubError, f"{folder}: the Hub would refuse it")


def pack(folder: Path, known: Mapping[str, FileSeal]) -> tuple[Phase, ...]:
    """The phases; a digest that is not `known` is computed."""
    paths = _published(folder)
    files = [_file(name, path, known.get(name)) for name, path in sorted(paths.items())]
    weights = [file for file in files if is_weight(file.name)]
    last = [file for file in files if _is_last(file.name)]
    rest = [file for file in files if not is_weight(file.name) and not _is_last(file.name)]
    return (
        Phase("card and side files", tuple(rest)), Phase("weights", tuple(weights)),
        Phase("index and config", tuple(last)),
    )  # fmt: skip


def batches(files: Iterable[File]) -> Iterator[tuple[File, ...]]:
    """The files in order, as many at a time as one commit takes, and one at least."""
    batch: list[File] = []
    for file in files:
        if batch and sum(other.bytes for other in batch) + file.bytes > COMMIT_BYTES:
            yield tuple(batch)
            batch = []
        batch.append(file)
    if batch:
        yield tuple(batch)


def side_files(folder: Path) -> dict[str, Path]:
    """Everything readable that would be published: what may hold a secret."""
    return {name: path for name, path in sorted(_published(folder).items()) if not WEIGHT_FILES.search(name)}


def _published(folder: Path) -> dict[str, Path]:
    """Relative name -> path of every file that is sent."""
    return sealed_files(folder) | {name: folder / name for name in ABOUT if (folder / name).is_file()}


def is_weight(name: str) -> bool:
    """Beside config.json, where engines look, or in a rank's folder; recorded inputs in a folder of ours are none."""
    return bool(RANK.match(name) or "/" not in name) and bool(WEIGHT_FILES.search(name))


def _is_last(name: str) -> bool:
    return name.rpartition("/")[2] in LAST and bool(RANK.match(name) or "/" not in name)


def _file(name: str, path: Path, known: FileSeal | None) -> File:
    return File(name, path, path.stat().st_size, known.sha256 if known else digest(path))


def _refusals(paths: Mapping[str, Path]) -> list[str]:
    found = []
    for name, path in paths.items():
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            found.append(
                f"{name} has {size} bytes, one file may have {LARGEST_FILE_BYTES}; quantize with a smaller "
                "output.shard_gb"
            )
    return found
