#!/usr/bin/env python3
"""Makes the records of what bench_gemm_builds.py and bench_layer_ways.py measured, and says what they add up to.

    python benchmarks/record_kernels.py FILE.jsonl ... --kernels 10 [--build v10] [--before 9] [--dry]

Into results/kernels-gemm-h200.jsonl and kernels-layer-h200.jsonl go the lines as they were measured, with `kernels`,
the version of the kernels, and without what every schedule took at a first look; a line of that version and cell that
stood there is replaced.  Into kernels/tuned/h200.json goes the fastest schedule of every GEMM with codes -8..7, and the
fastest way of every layer; rows of problems that were not measured stay, unless their kernel is no more.  Then the
summary of kernel_summary.py.  `--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kernel_summary
from kernel_summary import GEMMS, LAYERS, RESULTS
from w4afp8.checkpoint import atomic
from w4afp8.kernels import layers, schedules, tuned
from w4afp8.measure import table
from w4afp8.measure.bench import expected_rows
from w4afp8.measure.race import Found
from w4afp8.measure.shapes import NAMED
from w4afp8.measure.stand import SEVERAL, spelled
from w4afp8.measure.timing import Timing

FILES = {"gemm": GEMMS, "moe": LAYERS}
DROPPED = ("looks", "build")
NEAR = 1.3  # rows of the table that are so near to one measured now go
Record = dict[str, Any]
Run = tuple[Record, list[Record]]  # the machine, its cells


def runs(paths: Sequence[Path], build: str | None) -> list[Run]:
    """What was measured, the last of each cell; of one build.

    Raises: SystemExit for a cell of several builds when none was named.
    """
    found: list[Run] = []
    last: dict[tuple[Any, ...], tuple[int, Record]] = {}
    for record in (json.loads(line) for path in paths for line in path.read_text().splitlines()):
        if record["record"] == "machine":
            found.append((record, []))
        elif not build or record.get("build", build) == build:
            key = key_of(record)
            if key in last and last[key][1].get("build") != record.get("build"):
                raise SystemExit(f"{key}: of several builds; name one by --build")
            last[key] = (len(found) - 1, record)
    for number, record in last.values():
        found[number][1].append(record)
    return [(machine, cells) for machine, cells in found if cells]


def codes_of(record: Record) -> str:
    """The range of the weights' codes."""
    return str(record.get("codes", "-8..7"))


def key_of(record: Record) -> tuple[Any, ...]:
    """A cell."""
    return record["record"], record["shape"], record["tokens"], codes_of(record)


def lines_of(measured: Sequence[Run], kind: str, kernels: int) -> list[Record]:
    """The records of one kind, each run's machine before its cells; that of all codes last: `bench --from` shows it."""
    lines: list[Record] = []
    for machine, cells in sorted(measured, key=lambda run: any(codes_of(cell) == "-8..7" for cell in run[1])):
        mine = [cell for cell in cells if cell["record"] == kind]
        if mine:
            lines.append({**machine, "kernels": kernels})
            for cell in mine:
                kept = {key: value for key, value in cell.items() if key not in DROPPED}
                lines.append({**kept, "codes": codes_of(cell), "kernels": kernels})
    return lines


def merged(old: Sequence[Record], new: Sequence[Record], kernels: int) -> list[Record]:
    """The old records less those of the same version and cell as a new one, then the new ones."""
    anew = {key_of(r) for r in new if r["record"] != "machine"}
    kept = [r for r in old if r["record"] == "machine" or r.get("kernels") != kernels or key_of(r) not in anew]
    # A machine's line stands for the cells behind it: without any it goes, if it is of this version.
    alone = [
        r["record"] == "machine" and r.get("kernels") == kernels and (n is None or n["record"] == "machine")
        for r, n in zip(kept, [*kept[1:], None])
    ]
    return [r for r, gone in zip(kept, alone) if not gone] + list(new)


def found_in(measured: Sequence[Run]) -> tuple[list[Found], list[str]]:
    """What the table is to keep, and what cannot stand there."""
    gemms = {gemm.name: gemm for shape in NAMED.values() for gemm in shape.gemms}
    whole = {shape.layer.name: shape.layer for shape in NAMED.values() if shape.layer}
    rows = {spelled(row): row for row in schedules.ROWS}
    ways = {row.kernel for row in layers.ROWS} | {SEVERAL}
    found, odd = [], []
    for cell in (cell for _, cells in measured for cell in cells):
        tokens, timing = cell["tokens"], Timing(cell["us"], cell["spread_us"])
        if cell["record"] == "moe" and cell["way"] in ways:
            layer = whole[cell["shape"]]
            here = expected_rows(layer.gemms[0], tokens)
            found.append(Found(layer, tokens, here, cell["way"], timing, None, {}, {}, {}))
        elif cell["record"] == "gemm" and cell["schedule"] in rows:
            if codes_of(cell) == "-8..7":
                gemm = gemms[cell["shape"]]
                best = rows[cell["schedule"]]
                found.append(Found(gemm, tokens, expected_rows(gemm, tokens), best, timing, None, {}, {}, {}))
        else:
            odd.append(f"{cell['shape']} M={tokens}: {cell.get('way', cell['schedule'])} is no kernel of this checkout")
    return found, odd


def about(measured: Sequence[Run]) -> Mapping[str, str]:
    """Where it was measured.  Raises: SystemExit when that is not one kind of machine."""
    said = [{k: v for k, v in head.items() if isinstance(v, str) and k != "record"} for head, _ in measured]
    for key in ("device", "driver", "torch"):
        values = sorted({str(one.get(key)) for one in said})
        if len(values) > 1:
            raise SystemExit(f"{key}: found {', '.join(values)}, expected one; record them apart")
    return said[-1]


def write(path: Path, records: Sequence[Record]) -> None:
    atomic.write_bytes(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--kernels", type=int, required=True)
    parser.add_argument("--before", type=int, help="the version before unless it is said")
    parser.add_argument("--build")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, default=tuned.HERE / "h200.json")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    measured = runs(options.files, options.build)
    if not measured:
        raise SystemExit(f"{', '.join(map(str, options.files))}: no cells")
    where = about(measured)
    table.refuse_foreign(options.table, where["device"])
    found, odd = found_in(measured)
    after = {}
    for kind, name in FILES.items():
        old, new = kernel_summary.read(options.results / name), lines_of(measured, kind, options.kernels)
        after[kind] = merged(old, new, options.kernels) if new else old
        if new and not options.dry:
            write(options.results / name, after[kind])
    if not options.dry:
        made_by = f"benchmarks/record_kernels.py --kernels {options.kernels}"
        total = table.write(options.table, found, where, made_by, near=NEAR)
        print(f"wrote {options.table}: {len(found)} problems measured, {total} in all")
    print(*odd, sep="\n", end="\n" if odd else "")
    gemms = kernel_summary.rows_of(after["gemm"], options.kernels)
    earlier = options.before or options.kernels - 1
    before = kernel_summary.rows_of(after["gemm"], earlier)
    whole = kernel_summary.rows_of(after["moe"], options.kernels, ("moe",))
    print(kernel_summary.summary(gemms, before, earlier, whole))


if __name__ == "__main__":
    main()
