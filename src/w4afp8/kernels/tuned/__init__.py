"""Measured choices: tables of problems and their fastest schedules, one JSON file a device.

A problem is looked up by its weight's shape; the number of rows may lie between two measured ones.  A table that
`w4afp8 tune` wrote for the GPU at hand is read first (where it stands: `settings.tuned_table`); then the shipped one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import log
from pathlib import Path
from typing import Any

from w4afp8.errors import KernelError
from w4afp8.kernels import settings

HERE = Path(__file__).parent
NEAR = log(1.6)  # how far, as a ratio, a measured number of rows may be from the one asked for

Table = Mapping[str, list[tuple[int, str, int]]]  # "experts rows cols" -> (rows of x, kernel, split_groups)

_pinned: dict[str, tuple[str, int]] = {}


@cache
def table(device: str) -> Table:
    """The shipped table of one device, by file name."""
    return parse(HERE / f"{device}.json")[1]


def parse(path: Path) -> tuple[str, Table]:
    """A table's device, as torch names it, and its rows.  Raises: KernelError when the file is no such table."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        rows = {
            shape: [(int(r), str(kernel), int(split)) for r, kernel, split in measured]
            for shape, measured in content["schedules"].items()
        }
        if any(r < 1 for measured in rows.values() for r, *_ in measured):
            raise ValueError("a number of rows below 1")
        return str(content["device"]).partition(",")[0], rows  # older tables name the driver behind a comma
    except OSError as error:
        raise KernelError(f"{path}: cannot be read ({error.strerror}); `w4afp8 tune` writes such a table") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"{path}: is no table of `w4afp8 tune` ({error!r}); write it again, or delete it") from error


@cache
def _own(path: Path, device: str) -> Table:
    """The user's table at `path` when it was measured on `device`, else an empty one."""
    if not path.is_file() and not settings.table_is_named():
        return {}
    measured_on, rows = parse(path)
    return rows if measured_on == device else {}


def own_table() -> Table:
    """The user's table for the GPU at hand; empty without a GPU, and for another one's."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_name()
    return _own(settings.tuned_table(device), device)


def forget() -> None:
    """Read the tables anew, after one was written."""
    table.cache_clear()
    _own.cache_clear()


@contextmanager
def pinned(shape: str, kernel: str, split: int) -> Iterator[None]:
    """While it lasts, every problem of that weight ("experts rows cols") gets this schedule; for tuning."""
    _pinned[shape] = (kernel, split)
    try:
        yield
    finally:
        del _pinned[shape]


def lookup(experts: int, rows: int, cols: int, tokens: int, device: str = "h200") -> tuple[str, int] | None:
    """Kernel and split of the nearest measured problem of this weight, if one is near; `device`: the shipped table."""
    shape = f"{experts} {rows} {cols}"
    if shape in _pinned:
        return _pinned[shape]
    return _nearest(own_table().get(shape, []), tokens) or _nearest(table(device).get(shape, []), tokens)


def _nearest(measured: list[tuple[int, str, int]], tokens: int) -> tuple[str, int] | None:
    if not measured:
        return None
    t, kernel, split = min(measured, key=lambda m: abs(log(m[0] / tokens)))
    return (kernel, split) if abs(log(t / tokens)) <= NEAR else None
