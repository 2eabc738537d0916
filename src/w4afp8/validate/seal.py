"""The digests of a whole directory, taken in one pass: what a verdict is about.

A file's SHA-256 is the one that `sha256sum` prints and that the Hub shows beside a weight file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError
from w4afp8.validate.config import OWN_FOLDER

CARD = "README.md"
SOURCE_CARD = f"{OWN_FOLDER}/source-card.md"
VALIDATION = f"{OWN_FOLDER}/validation.json"
# What is written about a checkpoint after its proof, and never read by an engine: no part of what was proven.
ABOUT = (
    CARD, SOURCE_CARD, VALIDATION, f"{OWN_FOLDER}/report.json", f"{OWN_FOLDER}/report.html",
    f"{OWN_FOLDER}/evaluation.json",
)  # fmt: skip
CHUNK_BYTES = 8 << 20
WORTH_A_THREAD = 1 << 18  # bytes from which on a file's digest and its tensor's are taken side by side
READERS = 4  # hashing leaves the interpreter's lock, and is slower than a disk
TENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class FileSeal:
    """One file as it was: `mtime_ns` only tells whether it must be read again."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Seal:
    """Every file of a directory but those of `ABOUT`, and every tensor in them, by name."""

    files: Mapping[str, FileSeal]
    tensors: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"files": {name: asdict(seal) for name, seal in self.files.items()}, "tensors": dict(self.tensors)}

    def same_bytes(self, other: Seal) -> bool:
        mine, theirs = ({n: s.sha256 for n, s in seal.files.items()} for seal in (self, other))
        return mine == theirs


def read_seal(content: object) -> Seal:
    """The seal in a validation.json.  Raises: CheckpointError when it is none."""
    try:
        files = {str(name): FileSeal(**entry) for name, entry in content["files"].items()}  # type: ignore[index]
        tensors = {str(name): str(digest) for name, digest in content["tensors"].items()}  # type: ignore[index]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{VALIDATION}: holds no digests ({error!r}); validate again") from error
    return Seal(files, tensors)


def sealed_files(folder: Path) -> dict[str, Path]:
    """Relative name -> path of everything that a seal covers; hidden files and folders are not part of a checkpoint."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() not in ABOUT:
            found[relative.as_posix()] = path
    return found


def take_seal(folder: Path, on_progress: Callable[[str, int, int], None] | None = None) -> Seal:
    """Read every byte once, some files at a time.  Memory is a chunk each.

    A weight file whose header lies is sealed as a file alone: its tensors cannot be told apart.
    """
    files: dict[str, FileSeal] = {}
    tensors: dict[str, str] = {}
    paths = sealed_files(folder)
    for done, (name, (seal, found)) in enumerate(seal_files(paths), 1):
        files[name] = seal
        if "/" not in name:  # the checkpoint's own tensors stand beside config.json
            tensors |= found
        if on_progress:
            on_progress("digests", done, len(paths))
    return Seal(files, dict(sorted(tensors.items())))


def seal_files(paths: Mapping[str, Path]) -> Iterator[tuple[str, tuple[FileSeal, dict[str, str]]]]:
    """Each file's name and seal, in order, some files at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(paths, pool.map(seal_file, paths.values()))


def seal_file(path: Path) -> tuple[FileSeal, dict[str, str]]:
    """The file's seal, and the digests of its tensors when it holds any."""
    before = path.stat()
    specs: list[TensorSpec] = []
    if path.suffix == TENSORS:
        try:
            specs = read_header(path)[0]
        except CheckpointError:
            specs = []
    whole = hashlib.sha256()
    tensors: dict[str, str] = {}
    with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
        header_bytes = specs[0].begin if specs else 0
        for chunk in _chunks(file.read, header_bytes):
            whole.update(chunk)
        for spec in specs:
            own = hashlib.sha256()
            for chunk in _chunks(file.read, spec.span_bytes):
                if len(chunk) < WORTH_A_THREAD:
                    whole.update(chunk)
                    own.update(chunk)
                    continue
                at_work = beside.submit(own.update, chunk)
                whole.update(chunk)
                at_work.result()
            tensors[spec.name] = own.hexdigest()
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            whole.update(chunk)
    return FileSeal(before.st_size, before.st_mtime_ns, whole.hexdigest()), tensors


def digests(paths: Iterable[Path]) -> Iterator[str]:
    """Each file's SHA-256, in order, some files at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(digest, paths)


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(read: Callable[[int], bytes], total: int) -> Iterator[bytes]:
    while total > 0:
        chunk = read(min(CHUNK_BYTES, total))
        if not chunk:
            return
        total -= len(chunk)
        yield chunk
