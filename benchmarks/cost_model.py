#!/usr/bin/env python3
"""Says how far the cost model's choice is from the fastest look of each cell, over looks that were recorded.

    python benchmarks/cost_model.py [FILE.jsonl] [--worst 10]

Needs no GPU.  FILE has lines as `bench_gemm_builds.py --out` writes them; without one, the first looks at the cells of
version 9's sweep, results/kernels-looks-h200.jsonl.  Tuned tables are left out: the model serves what they have not.  A
look is four replays, and noisy; a choice that nobody looked at says nothing, and is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from w4afp8.kernels import schedules
from w4afp8.kernels.schedules import Problem, cost_us
from w4afp8.measure.shapes import NAMED
from w4afp8.measure.stand import spelled

LOOKS = Path(__file__).parent / "results" / "kernels-looks-h200.jsonl"
GEMMS = {gemm.name: gemm for shape in NAMED.values() for gemm in shape.gemms}


class Choice(NamedTuple):
    """What the model chooses for a cell, and how much slower than the fastest look it was; None: not looked at."""

    cell: str
    schedule: str
    fastest: str
    ratio: float | None


def choices(records: Iterable[dict[str, Any]]) -> list[Choice]:
    """One a record that has looks."""
    found = []
    for record in records:
        looks = record.get("looks")
        if not looks:
            continue
        gemm = GEMMS[record["shape"]]
        problem = Problem(round(record["rows"]), gemm.experts, gemm.rows, gemm.cols)
        runs = [row for row in schedules.ROWS if not row.refusals(problem)]
        chosen = spelled(min(runs, key=lambda row: cost_us(problem, row)))
        fastest = min(looks, key=lambda name: looks[name])
        ratio = looks[chosen] / looks[fastest] if chosen in looks else None
        found.append(Choice(f"{record['shape']} M={record['tokens']}", chosen, fastest, ratio))
    return found


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=LOOKS)
    parser.add_argument("--worst", type=int, default=10)
    options = parser.parse_args()
    found = choices(map(json.loads, options.file.read_text().splitlines()))
    seen = sorted((choice for choice in found if choice.ratio), key=lambda choice: -(choice.ratio or 0))
    if not seen:
        raise SystemExit(f"{options.file}: found no look at a schedule that the cost model chooses")
    mean = math.exp(statistics.mean(math.log(choice.ratio or 1) for choice in seen))
    unseen = len(found) - len(seen)
    print(f"{100 * (mean - 1):.1f} % slower than the fastest look, over {len(seen)} cells; {unseen} not looked at")
    for choice in seen[: options.worst]:
        print(f"{choice.cell:24} {choice.ratio:.2f}  {choice.schedule} chosen, {choice.fastest} fastest")


if __name__ == "__main__":
    main()
