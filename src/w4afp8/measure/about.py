"""What a number was measured with: every record and every table carries it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import torch

from w4afp8._version import __version__


def driver() -> str | None:
    """The GPU driver's version, or None where there is none."""
    return first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def about() -> dict[str, str]:
    """Device, driver, versions and date."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "driver": driver() or "none",
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "w4afp8": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def first_line(command: list[str], chosen: Callable[[str], bool] = bool) -> str | None:
    """The first chosen line that a program prints; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in done.stdout.splitlines() if line.strip() and chosen(line)), None)
