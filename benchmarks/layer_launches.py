#!/usr/bin/env python3
"""What each launch of a fused MoE layer takes, alone, and what it moves: where several launches lose their time.

    python benchmarks/layer_launches.py [--cells EP8:512,4096 R1:4096] [--ncu ncu] [--out FILE.jsonl]

Nsight Compute runs one launch after the other, so that none overlaps its neighbours: the sum is more than the layer
takes.  One JSON line a cell: name, microseconds and bytes read from and written to memory of each launch, in order,
the mean of two draws of the router.  Clocks are left as they are.  In results/kernels-builds-h200.jsonl a line says,
besides, which build it is of.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench_layer_ways import LAYERS, parse_cells
from w4afp8.kernels import sm90
from w4afp8.measure import cells, data
from w4afp8.measure.about import about

CELLS = ("EP8:512,4096", "TP8:1024,4096", "OSS:4096", "R1:1024,4096")
DRAWS = 2
METRICS = {
    "us": "gpu__time_duration.sum",
    "bytes_read": "dram__bytes_read.sum",
    "bytes_written": "dram__bytes_write.sum",
}  # as Nsight Compute names them; in ns and bytes
NAME = re.compile(r"::(\w+)_kernel|::(grouped_gemm)::kernel")


def run(wanted: Iterable[tuple[str, int]]) -> None:
    """What Nsight Compute watches: every cell once to warm up, then a range named after it."""
    device, profiler = torch.device("cuda"), torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for name, of_layer in groupby(wanted, key=itemgetter(0)):
        layer = LAYERS[name]
        weights = [data.weight(gemm, device) for gemm in layer.gemms]
        for _, tokens in of_layer:
            calls = data.layer_calls(layer, weights[0], weights[1], tokens)[:DRAWS]
            for call in calls:
                sm90.fused_moe(call, one_launch=False)
            torch.cuda.synchronize()
            profiler.cudaProfilerStart()
            torch.cuda.nvtx.range_push(f"{name}:{tokens}")  # type: ignore[no-untyped-call]
            for call in calls:
                sm90.fused_moe(call, one_launch=False)
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
            profiler.cudaProfilerStop()


def parse(lines: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Nsight Compute's raw page as CSV -> the launches of each cell, means over its draws."""
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    columns = {word: place for place, word in enumerate(rows[0])}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows[2:]:  # the second line has the units
        cell, _, kernel = row[columns["Kernel Name"]].partition("/")
        name = NAME.search(kernel)
        values = {key: float(row[columns[metric]].replace(",", "")) for key, metric in METRICS.items()}
        values["us"] /= 1000
        found.setdefault(cell, []).append({"launch": name[1] or name[2] if name else kernel, **values})
    return {cell: _mean_of_draws(launches) for cell, launches in found.items()}


def _mean_of_draws(launches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    each = len(launches) // DRAWS
    names = [one["launch"] for one in launches]
    if names != names[:each] * DRAWS:
        raise SystemExit(f"the draws of a cell differ in their launches: {' '.join(names)}")
    draws = [launches[i * each : (i + 1) * each] for i in range(DRAWS)]
    return [
        {"launch": same[0]["launch"], **{key: round(mean(one[key] for one in same), 1) for key in METRICS}}
        for same in zip(*draws, strict=True)
    ]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="LAYER:TOKENS,...")
    parser.add_argument("--ncu", default="ncu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = parse_cells(options.cells)
    if options.watched:
        run(wanted)
        return
    watch = "--clock-control none --cache-control none --profile-from-start off --nvtx --print-nvtx-rename kernel"
    command = [options.ncu, *watch.split(), "--metrics", ",".join(METRICS.values()), "--csv", "--page", "raw"]
    command += [sys.executable, __file__, "--watched", "--cells", *options.cells]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{options.ncu} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    for cell, launches in parse(done.stdout.splitlines()).items():
        shape, _, tokens = cell.partition(":")
        record = {"record": "layer_launches", "shape": shape, "tokens": int(tokens), "launches": launches}
        line = json.dumps({**record, **about()})
        print(line)
        if options.out:
            cells.append(options.out, line)


if __name__ == "__main__":
    main()
