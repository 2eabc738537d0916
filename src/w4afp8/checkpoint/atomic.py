"""Files that are either whole or absent, also after a power cut: `*.partial`, fsync, rename, fsync of the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(partial: Path, final: Path) -> None:
    """Give a finished and fsynced partial file its name."""
    partial.replace(final)
    sync_folder(final.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    commit(partial, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically, in pieces."""
    partial = target.with_name(target.name + PARTIAL)
    with source.open("rb") as reading, partial.open("wb") as file:
        shutil.copyfileobj(reading, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    commit(partial, target)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, as `as_json` renders it."""
    write_bytes(path, as_json(content))


def as_json(content: Any) -> bytes:
    """Two-space indent, keys in the given order, final newline; half a character is escaped."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
