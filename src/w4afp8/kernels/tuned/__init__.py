"""Measured choices: tables of problems and their fastest schedules, one JSON file a device.

A problem is looked up by its weight's shape, a fused layer by its experts' sizes; the number of rows may lie between
two measured ones.  A table that `w4afp8 tune` wrote for the GPU at hand is read first (where it stands:
`settings.tuned_table`); then the shipped one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import log
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from w4afp8.errors import KernelError
from w4afp8.kernels import settings

HERE = Path(__file__).parent
T = TypeVar("T")
NEAR = log(1.6)  # how far, as a ratio, a measured number of rows may be from the one asked for

SEVERAL = "several"  # the way of a layer that runs in several launches


class Table(NamedTuple):
    """What was measured on one device."""

    device: str  # as torch names it; "" in a table of nothing
    schedules: Mapping[str, list[tuple[int, str, int]]]  # "experts rows cols" -> (rows of x, kernel, split_groups)
    # "experts hidden inner" -> (rows here, kernel of one launch or SEVERAL)
    layers: Mapping[str, list[tuple[int, str]]]


NOTHING = Table("", {}, {})
_pinned: dict[str, tuple[str, int]] = {}


@cache
def table(device: str) -> Table:
    """The shipped table of one device, by file name."""
    return parse(HERE / f"{device}.json")


def parse(path: Path) -> Table:
    """Raises: KernelError when the file is no such table."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        rows = {
            shape: [(int(r), str(kernel), int(split)) for r, kernel, split in measured]
            for shape, measured in content["schedules"].items()
        }
        layers = {
            shape: [(int(r), str(kernel)) for r, kernel in measured]
            for shape, measured in content.get("layers", {}).items()
        }
        if any(r < 1 for part in (rows, layers) for measured in part.values() for r, *_ in measured):
            raise ValueError("a number of rows below 1")
        return Table(str(content["device"]).partition(",")[0], rows, layers)  # older tables: the driver behind a comma
    except OSError as error:
        raise KernelError(f"{path}: cannot be read ({error.strerror}); `w4afp8 tune` writes such a table") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"{path}: is no table of `w4afp8 tune` ({error!r}); write it again, or delete it") from error


@cache
def _own(path: Path, device: str) -> Table:
    """The user's table at `path` when it was measured on `device`, else an empty one."""
    if not path.is_file() and not settings.table_is_named():
        return NOTHING
    found = parse(path)
    return found if found.device == device else NOTHING


def own_table() -> Table:
    """The user's table for the GPU at hand; empty without a GPU, and for another one's."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return NOTHING
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
    for known in (own_table().schedules, table(device).schedules):
        if near := _nearest([(t, (kernel, split)) for t, kernel, split in known.get(shape, [])], tokens):
            return near
    return None


def lookup_layer(experts: int, hidden: int, inner: int, rows: int, device: str = "h200") -> str | None:
    """The kernel of one launch, or `SEVERAL`, of the nearest measured layer of these sizes, if one is near."""
    shape = f"{experts} {hidden} {inner}"
    for known in (own_table().layers, table(device).layers):
        if near := _nearest(known.get(shape, []), rows):
            return near
    return None


def _nearest(measured: Sequence[tuple[int, T]], rows: int) -> T | None:
    if not measured:
        return None
    r, choice = min(measured, key=lambda m: abs(log(m[0] / rows)))
    return choice if abs(log(r / rows)) <= NEAR else None
