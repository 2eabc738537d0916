"""What every benchmark shares: where the miniature is, what machine this is, one JSON line per result."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from w4afp8 import __version__

HERE = Path(__file__).parent
ROOT = HERE.parent
MINIATURE = ROOT / "demo" / "tiny-dsv3"
EVALUATION = ROOT / "demo" / "evaluation.jsonl"


def record(name: str, numbers: dict[str, Any]) -> None:
    """Append one line to results/NAME.jsonl and print it."""
    line = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "w4afp8": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores",
        **numbers,
    }
    text = json.dumps(line)
    path = HERE / "results" / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(text + "\n")
    print(text)
