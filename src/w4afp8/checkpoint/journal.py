"""What is finished: the resume contract.

A run leaves `fingerprint.json` (what the output is made from) and one `UNIT.done.json` per finished unit, each written
only after the unit's bytes are durable.  Whoever finds the same fingerprint goes on after the last finished unit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import read_json
from w4afp8.errors import ResumeError

FINGERPRINT = "fingerprint.json"


class Journal:
    """The journal of one output directory, kept in a folder of its own inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of an open journal while the block lasts; a killed run's lock dies with it.

        Raises: ResumeError when another run holds it.
        """
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResumeError(f"{self.folder}: another run writes this output; wait for it or stop it") from error
            yield
        finally:
            os.close(descriptor)

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What the unfinished output was made from, or None when there is none."""
        path = self.folder / FINGERPRINT
        return read_json(path) if path.exists() else None

    def open(self, fingerprint: dict[str, Any]) -> bool:
        """Begin, or go on with what another run began: True then.

        Raises: ResumeError listing every difference when the other run was made from something else.
        """
        earlier = self.fingerprint
        if earlier is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self.folder / FINGERPRINT, fingerprint)
            return False
        differences = list(compare(earlier, fingerprint))
        if differences:
            shown = "\n".join(f"  - {line}" for line in differences[:20])
            more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
            raise ResumeError(
                f"{self.folder.parent} holds an unfinished run made from something else:\n{shown}{more}\n"
                "Run it with what it began with, choose another output (-o), or discard it with --resume never."
            )
        return True

    def record(self, unit: str) -> dict[str, Any] | None:
        """What a finished unit left, or None when it is not finished."""
        path = self._path(unit)
        return read_json(path) if path.exists() else None

    def finish(self, unit: str, record: dict[str, Any]) -> None:
        """Declare a unit finished; its bytes must be durable before."""
        atomic.write_json(self._path(unit), record)

    def discard(self) -> None:
        """Forget everything, the fingerprint first: killed on the way, what is left is no unfinished run."""
        (self.folder / FINGERPRINT).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, unit: str) -> Path:
        return self.folder / f"{unit}.done.json"


def compare(earlier: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each leaf that differs, as 'path: was X, is Y'."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in [*earlier, *(key for key in now if key not in earlier)]:
            yield from compare(earlier.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif earlier != now:
        yield f"{path}: was {_short(earlier)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
