"""What a run says while it works: plain dictionaries, to whoever listens.  Floor 0.

The command line draws them, `run.jsonl` keeps them, tests read them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]


def ignore(event: dict[str, Any]) -> None:
    """Listen to nothing."""


class EventLog:
    """Appends events to a JSON-lines file, each with the time, and passes them on."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self._path, self._listener = path, listener

    def __call__(self, event: dict[str, Any]) -> None:
        # Progress inside a layer is for eyes only.
        if event["event"] != "progress":
            with self._path.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        self._listener(event)
