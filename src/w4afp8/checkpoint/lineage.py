"""`w4afp8/conversion.json`: what a directory was converted from, and the digests of everything that was written.

`w4afp8/source-validation.json` beside it is the proof of the source, where the source had one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import read_json
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import CheckpointError

CONVERSION = "w4afp8/conversion.json"
SOURCE_PROOF = "w4afp8/source-validation.json"
CHECKSUM = "checksum"  # of the other fields
SPEC = re.compile(r"(\w+) \[((?:\d+(?:, \d+)*)?)\]")


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint that was converted, as far as its headers and its place tell; no path of any machine."""

    name: str
    hub_id: str | None
    revision: str | None
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]  # of its index
    kept: Mapping[str, TensorSpec]  # activation scales that it keeps outside the index


@dataclass(frozen=True, slots=True)
class Lineage:
    """What `convert` did."""

    tool: Mapping[str, Any]
    before: str  # the format of the source's experts
    after: str
    matrices: int
    proof: str
    source: Source
    digests: Mapping[str, str]  # tensor -> SHA-256
    files: Mapping[str, str]  # every other file that was written -> SHA-256

    def to_json(self) -> dict[str, Any]:
        """In the order in which it is read, its checksum first."""
        source = {
            "name": self.source.name, "hub_id": self.source.hub_id, "revision": self.source.revision,
            "config": dict(self.source.config), "tensors": _rendered(self.source.tensors.values()),
            "kept": _rendered(self.source.kept.values()),
        }  # fmt: skip
        content = {
            "tool": dict(self.tool), "from": self.before, "to": self.after, "matrices": self.matrices,
            "proof": self.proof, "source": source, "digests": dict(self.digests), "files": dict(self.files),
        }  # fmt: skip
        return {CHECKSUM: checksum(content), **content}


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write conversion.json."""
    atomic.write_json(folder / CONVERSION, lineage.to_json())


def read_lineage(folder: Path) -> Lineage:
    """What the directory was made from.  Raises: CheckpointError when the file is missing, changed or misshapen."""
    content = read_json(folder / CONVERSION)
    said = content.pop(CHECKSUM, None)
    if said is None:
        raise CheckpointError(f"{CONVERSION}: has no {CHECKSUM}; an older release wrote it, convert again")
    if said != checksum(content):
        raise CheckpointError(f"{CONVERSION}: was changed after the conversion; convert again, or fetch it again")
    try:
        source = content["source"]
        return Lineage(
            tool=dict(content["tool"]),
            before=str(content["from"]),
            after=str(content["to"]),
            matrices=int(content["matrices"]),
            proof=str(content["proof"]),
            source=Source(
                str(source["name"]), _text(source["hub_id"]), _text(source["revision"]), dict(source["config"]),
                _parsed(source["tensors"]), _parsed(source["kept"]),
            ),
            digests={str(name): str(digest) for name, digest in content["digests"].items()},
            files={str(name): str(digest) for name, digest in content["files"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{CONVERSION}: is no record of a conversion ({error!r}); convert again") from error


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever its order and blanks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _rendered(specs: Iterable[TensorSpec]) -> dict[str, str]:
    return {spec.name: f"{spec.dtype} {list(spec.shape)}" for spec in specs}


def _parsed(content: Mapping[str, str]) -> dict[str, TensorSpec]:
    found = {}
    for name, text in content.items():
        said = SPEC.fullmatch(text)
        if said is None or said[1] not in DTYPES:
            raise ValueError(f"{name} is {text!r}")
        found[name] = TensorSpec(name, said[1], tuple(map(int, filter(None, said[2].split(", ")))))
    return found


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def bare(specs: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
    """Dtypes and shapes by name, wherever the tensors stand."""
    return {spec.name: replace(spec, shard="", begin=0) for spec in specs}
