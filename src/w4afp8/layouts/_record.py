"""`w4afp8/layout.json`: which layout a directory has, over which ranks, and what the checkpoint was before.

`w4afp8/canonical/` keeps what the way back needs and no stack holds: headers, config, index, activation scales.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w4afp8._version import __version__
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import read_json
from w4afp8.errors import CheckpointError, raise_all
from w4afp8.families import LAYOUT_METHOD

FOLDER = "w4afp8"
RECORD = f"{FOLDER}/layout.json"
CANONICAL_FOLDER = f"{FOLDER}/canonical"
HEADERS = f"{CANONICAL_FOLDER}/headers"
FILES = f"{CANONICAL_FOLDER}/files"
KEPT = f"{CANONICAL_FOLDER}/kept.safetensors"
CHECKSUM = "checksum"
LONGEST_NAME = 240  # bytes; file systems take 255, and `.partial` and `.header` are added


@dataclass(frozen=True)
class Record:
    """Everything that the bytes depend on, and the digests of what they were made from."""

    layout: str
    version: int
    read_by: str
    form: str  # int4, mxfp4
    weight_format: str
    holding: int
    tolerance: float
    tp: int
    ep: int
    pad: int
    sizes: dict[str, int]  # experts, hidden, intermediate, group: as they are; then as they are stored
    w13: list[str]
    notes: list[str]
    canonical: str  # checksum: what `LC_ALL=C sha256sum *.safetensors | sha256sum` prints in the canonical directory
    shards: dict[str, dict[str, Any]]  # of the canonical directory: bytes, sha256, header (its sha256)
    tensors: dict[str, str]  # canonical tensor -> sha256
    files: dict[str, dict[str, Any]]  # everything else of it: bytes, sha256, kept (stands in FILES, else in its place)

    @property
    def metadata(self) -> dict[str, str]:
        """What every shard of experts says of itself."""
        return {
            "w4afp8.layout": self.layout,
            "w4afp8.layout_version": str(self.version),
            "w4afp8.split": f"tp {self.tp}, ep {self.ep}",
            "w4afp8.canonical_sha256": self.canonical,
        }

    @property
    def block(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        return {
            "quant_method": LAYOUT_METHOD,
            "layout": self.layout,
            "layout_version": self.version,
            "read_by": self.read_by,
            "tensor_parallel": self.tp,
            "expert_parallel": self.ep,
            "sizes": self.sizes,
            "w13": self.w13,
            "canonical_sha256": self.canonical,
        }

    @property
    def copies(self) -> dict[str, str]:
        """File in the directory -> SHA-256, of everything that is a copy of the canonical checkpoint's."""
        found = {f"{HEADERS}/{shard}.header": said["header"] for shard, said in self.shards.items()}
        for name, said in self.files.items():
            found[f"{FILES}/{name}" if said["kept"] else name] = said["sha256"]
        return found

    def render(self) -> bytes:
        """The file's bytes, its checksum first."""
        content = {"tool": {"name": "w4afp8", "version": __version__}, **asdict(self)}
        found = {CHECKSUM: _checksum(content), **content}
        return atomic.as_json(found)

    def write(self, folder: Path) -> None:
        (folder / FOLDER).mkdir(exist_ok=True)
        atomic.write_bytes(folder / RECORD, self.render())


def is_laid_out(folder: Path) -> bool:
    """Whether the directory holds a layout."""
    return (folder / RECORD).is_file()


def read(folder: Path) -> Record:
    """Raises: CheckpointError when the record is damaged."""
    content = read_json(folder / RECORD)
    said = content.pop(CHECKSUM, None)
    if said != _checksum(content):
        raise CheckpointError(f"{RECORD} was changed: its checksum does not fit it; convert the checkpoint again")
    content.pop("tool", None)
    try:
        found = Record(**content)
        problems = list(_problems(found))
    except (TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{RECORD}: written by another version of this program ({error!r})") from error
    raise_all(problems, CheckpointError, f"{RECORD} says what no layout can be")
    return found


def _problems(r: Record) -> Iterator[str]:
    """A checksum proves nothing about who wrote it: names must stay in the directory, counts must be counts."""
    for name in r.shards:
        if Path(name).name != name or name in ("", ".", "..") or not _is_a_name(name):
            yield f"the shard {name!r} is no plain file name"
    for name in r.files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            yield f"the file {name!r} leaves the directory"
        elif not _is_a_name(name):
            yield f"the file {name!r} has a name that no file can have"
    texts = {"layout": r.layout, "read_by": r.read_by, "form": r.form, "weight_format": r.weight_format,
             "canonical": r.canonical}  # fmt: skip
    yield from (f"{name} is {value!r}, expected text" for name, value in texts.items() if not isinstance(value, str))
    counts = {"tp": r.tp, "ep": r.ep, "pad": r.pad, "holding + 1": r.holding + 1, **r.sizes}
    yield from (f"{name} is {value!r}" for name, value in counts.items() if type(value) is not int or value < 1)
    digests = [*r.tensors.values(), *(said[key] for said in r.shards.values() for key in ("sha256", "header")),
               *(said["sha256"] for said in r.files.values())]  # fmt: skip
    if not all(isinstance(digest, str) and len(digest) == 64 for digest in digests):
        yield "some digests are no SHA-256"
    if not all(type(said["bytes"]) is int and said["bytes"] >= 0 for said in (*r.shards.values(), *r.files.values())):
        yield "some sizes are no sizes"
    if type(r.tolerance) not in (int, float) or not 0 <= r.tolerance < float("inf"):
        yield f"tolerance is {r.tolerance!r}"


def _is_a_name(name: str) -> bool:
    """Whether a file can be called so: as long as file systems allow, and no half characters."""
    try:
        return "\0" not in name and all(len(part.encode()) <= LONGEST_NAME for part in Path(name).parts)
    except UnicodeEncodeError:
        return False


def canonical_checksum(shards: Mapping[str, str]) -> str:
    """Of file -> SHA-256: what `LC_ALL=C sha256sum *.safetensors | sha256sum` prints."""
    lines = b"".join(
        digest.encode() + b"  " + name + b"\n" for name, digest in sorted((n.encode(), d) for n, d in shards.items())
    )
    return hashlib.sha256(lines).hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")).hexdigest()
