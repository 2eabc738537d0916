"""Measured choices: tables of problems and their fastest schedules, one JSON file a device.

A problem is looked up by its weight's shape; the number of rows may lie between two measured ones.
"""

from __future__ import annotations

import json
from functools import cache
from math import log
from pathlib import Path

HERE = Path(__file__).parent
NEAR = log(1.6)  # how far, as a ratio, a measured number of rows may be from the one asked for


@cache
def table(device: str) -> dict[str, list[tuple[int, str, int]]]:
    """The table of one device, by file name: weight shape -> (rows of x, kernel, split_groups)."""
    found = json.loads((HERE / f"{device}.json").read_text())["schedules"]
    return {shape: [(int(r), str(kernel), int(split)) for r, kernel, split in rows] for shape, rows in found.items()}


def lookup(experts: int, rows: int, cols: int, tokens: int, device: str = "h200") -> tuple[str, int] | None:
    """Kernel and split of the nearest measured problem of this weight, if one is near."""
    measured = table(device).get(f"{experts} {rows} {cols}", [])
    if not measured:
        return None
    t, kernel, split = min(measured, key=lambda m: abs(log(m[0] / tokens)))
    return (kernel, split) if abs(log(t / tokens)) <= NEAR else None
