"""The table that `tune` writes: as `kernels/tuned` reads it, stamped with where and when it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.errors import RecipeError
from w4afp8.kernels import layers, schedules, tuned
from w4afp8.measure.race import Found

WHAT = (
    'The fastest schedule of each measured problem: "experts rows cols" -> [rows of x, kernel, split_groups]; '
    'of each measured layer "experts hidden inner" -> [rows here, kernel of one launch or "several"]'
)

Rows = dict[str, dict[int, tuple[str | int, ...]]]  # key -> rows -> the rest of an entry


def refuse_foreign(path: Path, device: str) -> None:
    """Before anything is measured.  Raises: RecipeError when the table at `path` is another device's."""
    if not path.exists():
        return
    measured_on = tuned.parse(path).device
    if measured_on != device:
        raise RecipeError(f"{path}: is the table of {measured_on}, this is {device}; give another -o")


def write(
    path: Path, found: Iterable[Found], about: Mapping[str, str], made_by: str, keep: bool = True, near: float = 1.0
) -> int:
    """Write the problems found over those of the table that may stand there; returns how many the table holds.

    A problem found replaces the rows of the same weight whose number is the same, or within a factor of `near`; every
    other row stays, unless not `keep`, or its kernel is no more.
    """
    gemms: Rows = {}
    ways: Rows = {}
    if keep and path.exists():
        old = tuned.parse(path)
        there = {(row.kernel, row.split_groups) for row in schedules.ROWS}
        for shape, rows in old.schedules.items():
            gemms[shape] = {r: (kernel, split) for r, kernel, split in rows if (kernel, split) in there}
        one = {row.kernel for row in layers.ROWS} | {tuned.SEVERAL}
        ways = {shape: {r: (kernel,) for r, kernel in rows if kernel in one} for shape, rows in old.layers.items()}
    found = list(found)
    for f in found:
        part = ways if isinstance(f.best, str) else gemms
        part[f.key] = {r: e for r, e in part.get(f.key, {}).items() if max(r / f.rows, f.rows / r) > near}
    for f in found:
        if isinstance(f.best, str):
            ways[f.key][f.rows] = (f.best,)
        else:
            gemms[f.key][f.rows] = (f.best.kernel, f.best.split_groups)
    content = {"what": WHAT, "made_by": made_by, **about}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, _text(content, {"schedules": gemms, "layers": ways}).encode())
    tuned.forget()
    schedules.forget()
    layers.forget()
    return sum(len(rows) for part in (gemms, ways) for rows in part.values())


def _text(head: Mapping[str, Any], parts: Mapping[str, Rows]) -> str:
    """JSON with a line a weight or layer, so that a new measurement is a short diff."""
    top = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    return (
        "{\n" + ",\n".join([*top, *(f"  {json.dumps(name)}: {_lines(rows)}" for name, rows in parts.items())]) + "\n}\n"
    )


def _lines(rows: Rows) -> str:
    lines = [
        f"    {json.dumps(shape)}: {json.dumps([[r, *rows[shape][r]] for r in sorted(rows[shape])])}"
        for shape in sorted(rows)
    ]
    return "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"


def found_json(f: Found) -> dict[str, Any]:
    """One problem of a search, for `--json`."""
    return {
        "problem": f.problem.name, "tokens": f.tokens, "weight": f.key, "rows": f.rows, "schedule": f.chosen,
        "us": f.timing.us, "spread_us": f.timing.spread_us, "before_us": f.before_us, "tried": dict(f.tried),
        "wrong": dict(f.wrong), "refused": dict(f.refused),
    }  # fmt: skip
