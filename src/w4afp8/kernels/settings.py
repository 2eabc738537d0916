"""What the environment says to the kernels; the only file that reads it.

| variable | means |
| --- | --- |
| `CUDA_HOME` | where a CUDA toolkit stands, beside the PATH |
| `XDG_CACHE_HOME` | compiled kernels are kept in `w4afp8/` there (default `~/.cache`) |
| `XDG_CONFIG_HOME` | the tables of `w4afp8 tune` are kept in `w4afp8/tuned/` there (default `~/.config`) |
| `W4AFP8_TUNED` | one such table, read instead of those |
| `W4AFP8_CHECK` | `1`: expert offsets are read back and checked before a kernel runs; a wait for the device each call |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from w4afp8.errors import KernelError


def cuda_home() -> Path | None:
    """The toolkit's root, when the environment names one."""
    home = os.environ.get("CUDA_HOME")
    return Path(home) if home else None


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w4afp8"


def tuned_table(device: str) -> Path:
    """The user's own table for a device of that name, as `torch.cuda.get_device_name` says it; it need not exist."""
    if named := os.environ.get("W4AFP8_TUNED"):
        return Path(named)
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "w4afp8" / "tuned" / f"{slug}.json"


def table_is_named() -> bool:
    """Whether `W4AFP8_TUNED` names a table, which must then be there."""
    return bool(os.environ.get("W4AFP8_TUNED"))


def checks_offsets() -> bool:
    """Whether calls on the GPU read their expert offsets back first.  Raises: KernelError for another value."""
    value = os.environ.get("W4AFP8_CHECK", "")
    if value not in ("", "0", "1"):
        raise KernelError(f"W4AFP8_CHECK: found {value!r}, expected 1 (check every call) or 0")
    return value == "1"
