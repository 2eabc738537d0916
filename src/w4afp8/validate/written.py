"""The form of what this tool wrote: a file that parses may still be damaged, where a parser does not look.

A blank that became a tab, a name written twice, a flipped letter in a header's metadata: the same meaning, other bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.header import read_header, render_header
from w4afp8.checkpoint.lineage import CONVERSION
from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import W4AFP8Error
from w4afp8.validate.config import RECORD
from w4afp8.validate.findings import Check

TOOL = "w4afp8"
THEN = "the file changed after the run: copy it again, or quantize again"


def check_written(folder: Path, own_files: Iterable[str], shards: Iterable[str], record: Mapping[str, Any]) -> Check:
    """Index, config, the format's own files and every header, byte for byte as this tool writes what they say."""
    check = Check("written form", "index, config, headers and record are written as this tool writes them")
    if (record.get("tool") or {}).get("name") != TOOL:
        check.idle = "another tool's directory"
        return check
    for name in (INDEX, CONFIG, RECORD, CONVERSION, *own_files):
        path = folder / name
        if path.is_file():
            check.examined += 1
            _check_json(path, name, check)
    for shard in shards:
        check.examined += 1
        _check_header(folder / shard, check)
    return check


def _check_json(path: Path, name: str, check: Check) -> None:
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return  # said already, by the check that reads it
    if raw != atomic.as_json(content):
        check.blame(name, "bytes that say the same in another form", "the form in which it was written", THEN)


def _check_header(path: Path, check: Check) -> None:
    try:
        specs, metadata = read_header(path)
    except W4AFP8Error:
        return  # said already, by the check of the index
    expected, _ = render_header(specs, metadata)
    with path.open("rb") as file:
        found = file.read(len(expected))
    if found != expected or metadata.get("format") != "pt":
        check.blame(path.name, "a header in another form", "the header as it was written", THEN)
