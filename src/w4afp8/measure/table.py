"""The table that `tune` writes: as `kernels/tuned` reads it, stamped with where and when it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from w4afp8.checkpoint import atomic
from w4afp8.errors import RecipeError
from w4afp8.kernels import schedules, tuned
from w4afp8.measure.stand import spelled
from w4afp8.measure.tune import Found

WHAT = 'The fastest schedule of each measured problem: "experts rows cols" -> [rows of x, kernel, split_groups]'


def refuse_foreign(path: Path, device: str) -> None:
    """Before anything is measured.  Raises: RecipeError when the table at `path` is another device's."""
    if not path.exists():
        return
    measured_on, _ = tuned.parse(path)
    if measured_on != device:
        raise RecipeError(f"{path}: is the table of {measured_on}, this is {device}; give another -o")


def write(path: Path, found: Iterable[Found], about: Mapping[str, str], made_by: str, keep: bool = True) -> int:
    """Write the problems found over those of the table that may stand there; returns how many the table holds.

    A problem found replaces the row of the same weight and number of rows; every other row stays, unless not `keep`.
    """
    rows: dict[str, dict[int, tuple[str, int]]] = {}
    if keep and path.exists():
        for shape, measured in tuned.parse(path)[1].items():
            rows[shape] = {r: (kernel, split) for r, kernel, split in measured}
    for f in found:
        rows.setdefault(f.weight, {})[f.rows] = (f.best.kernel, f.best.split_groups)
    content = {"what": WHAT, "made_by": made_by, **about}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, _text(content, rows).encode())
    tuned.forget()
    schedules.forget()
    return sum(len(measured) for measured in rows.values())


def _text(head: Mapping[str, Any], rows: Mapping[str, Mapping[int, tuple[str, int]]]) -> str:
    """JSON with a line a weight, so that a new measurement is a short diff."""
    lines = [
        f"    {json.dumps(shape)}: {json.dumps([[r, *rows[shape][r]] for r in sorted(rows[shape])])}"
        for shape in sorted(rows)
    ]
    top = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    return "\n".join(["{", *top, '  "schedules": {', ",\n".join(lines), "  }", "}"]) + "\n"


def found_json(f: Found) -> dict[str, Any]:
    """One problem of a search, for `--json`."""
    return {
        "problem": f.gemm.name, "tokens": f.tokens, "weight": f.weight, "rows": f.rows, "schedule": spelled(f.best),
        "us": f.timing.us, "spread_us": f.timing.spread_us, "before_us": f.before_us, "tried": dict(f.tried),
        "wrong": dict(f.wrong), "refused": dict(f.refused),
    }  # fmt: skip
