#!/usr/bin/env python3
"""Times several builds of the fused MoE layer on the same cells in one run, way by way.

    python -m w4afp8.kernels.build          # in a checkout of each commit; then its src/w4afp8/kernels/_sm90.so is
    python benchmarks/bench_layer_builds.py --run waves --build "v9=OLD.so=version 9" --build "w=NEW.so=tiles in waves"
                                            --cells TP8:8:n8f,n8 EP8:256:n16 R1:512:several [--out FILE.jsonl]
                                            [--limit-s 230]

Each build is served by a process of its own, all with this checkout's Python; a commit whose ops take other arguments
is refused in every way, and wants this checkout's bindings.cpp.  A way is a kernel of one launch (`kernels/layers.py`),
or `several`: GEMMs in launches of their own, under the schedules that the tables choose.  Weights, tokens and routings
are the same in every process.

Each build's output is compared with the plain twin, and one that is wrong is not timed.  The others are timed in turns
there and back, as in `bench_gemm_builds.py`, and the median of the turns counts.  Whether an output has the bits of the
first build's is said beside: one that adds in another order need not have them, one that changes nothing must.

The first lines are a `build` of what each --build says after its library; then one line `layer_builds` a cell and way:
`us` and `turns_us` by build, `differs`, the builds whose outputs have other bits than the first, and `wrong`, why a
build was not timed.  What stands in FILE of the same --run and of all builds is not measured again; after --limit-s no
further cell is begun.  A cell that fails or hangs is said, its processes are started anew, the next cell is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bench_layer_ways
import sweep
from bench_layer_ways import LAYERS, rows_by_name
from w4afp8.kernels import build, sm90
from w4afp8.measure import stand, truth
from w4afp8.measure.floor import Machine, Work
from worker import Worker, serve

SERVE = (sys.executable, __file__, "--serve")
TURNS = 4
TURN_REPLAYS = 9
Ways = dict[tuple[str, int], list[str]]  # of a layer and a number of tokens


class Server(bench_layer_ways.Server):
    """One build, asked way by way."""

    def prepare(self, name: str, tokens: int) -> dict[str, Any]:
        """The next cell, the same in every process that was asked for the same cells; what it is."""
        on_gpu = self.on.device.type == "cuda"
        if name not in self.weights:  # every build has its own: one layer's at a time
            self.calls = []
            self.weights.clear()
            if on_gpu:
                torch.cuda.empty_cache()
        torch.manual_seed(tokens)
        about = super().prepare(name, tokens)
        self.exact = truth.sample_layer(self.calls[0])
        if on_gpu:
            torch.cuda.synchronize()  # the others are timed next
        return about

    def look(self, way: str) -> dict[str, str]:
        """The digest of a way's output, or what is wrong with it."""
        row, call = rows_by_name()[way], self.calls[0]
        if why := row.cannot(sm90.layer_of(call)) if row else []:
            return {"wrong": "; ".join(why)}
        try:
            out = self.on.way(call, row, truth.poisoned_layer(call))
            error = self.exact.error(out)
        except RuntimeError as refused:  # a kernel that this build has not
            if "CUDA error" in str(refused):
                raise
            return {"wrong": str(refused).partition("\n")[0]}
        if not error <= truth.WORST_LAYER_ERROR:
            return {"wrong": f"an error of {error:.3g}"}
        return {"bits": hashlib.sha256(out.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()}

    def time(self, way: str) -> float:
        """Microseconds of one way."""
        calls = [partial(self.on.way, call, rows_by_name()[way], None) for call in self.calls]
        return float(self.on.time(calls, replays=TURN_REPLAYS).us)


def measure(
    workers: Sequence[Worker], name: str, tokens: int, ways: Sequence[str], machine: Machine
) -> Iterator[dict[str, Any]]:
    """One cell, way by way."""
    for worker in workers:
        worker.send("prepare", name, tokens)
    (about, *_) = [worker.answer() for worker in workers]
    floor_us = Work(about["bytes"], about["flops"]).floor_us(machine)
    for way in ways:
        looks = {worker.name: worker.ask("look", way) for worker in workers}
        right = [worker for worker in workers if "bits" in looks[worker.name]]
        turns: dict[str, list[float]] = {worker.name: [] for worker in right}
        for number in range(TURNS):
            for worker in right[:: -1 if number % 2 else 1]:
                turns[worker.name].append(worker.ask("time", way))
        first = looks[workers[0].name].get("bits")
        yield {
            "shape": name, "tokens": tokens, "way": way, "floor_us": round(floor_us, 2),
            "us": {who: round(statistics.median(found), 2) for who, found in turns.items()},
            "turns_us": {who: [round(us, 2) for us in found] for who, found in turns.items()},
            "differs": [who for who in turns if first and looks[who]["bits"] != first],
            "wrong": {who: look["wrong"] for who, look in looks.items() if "wrong" in look},
        }  # fmt: skip


def parse_cells(words: Sequence[str]) -> Ways:
    """TP8:1,8:n8f,n8 -> (TP8, 1) and (TP8, 8), each by n8f and n8."""
    found: Ways = {}
    for word in words:
        name, _, rest = word.partition(":")
        tokens, _, ways = rest.partition(":")
        known = set(ways.split(",")) <= set(rows_by_name())
        if name not in LAYERS or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", tokens) or not known:
            raise SystemExit(
                f"--cells {word}: expected a layer, numbers of tokens and ways; "
                f"layers: {', '.join(LAYERS)}; ways: {', '.join(rows_by_name())}"
            )
        for m in map(int, tokens.split(",")):
            mine = found.setdefault((name, m), [])
            mine += [way for way in ways.split(",") if way not in mine]
    return found


def lines_of(path: Path, run: str) -> list[dict[str, Any]]:
    """What stands in a file of this run."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [record for record in map(json.loads, lines) if record.get("run") == run]


def not_yet(wanted: Ways, lines: Sequence[Mapping[str, Any]], builds: Sequence[str]) -> Ways:
    """Without what was measured of all these builds."""
    done = {
        (r["shape"], r["tokens"], r["way"])
        for r in lines
        if r["record"] == "layer_builds" and {*builds} <= {*r["us"], *r["wrong"]}
    }
    left = {cell: [way for way in ways if (*cell, way) not in done] for cell, ways in wanted.items()}
    return {cell: ways for cell, ways in left.items() if ways}


def line_of(found: Mapping[str, Any]) -> str:
    """For whoever watches."""
    words = [f"{found['shape']:4} {found['tokens']:5} {found['way']:8}"]
    words += [f"{who} {us:.2f}" + " differs" * (who in found["differs"]) for who, us in found["us"].items()]
    words += [f"{who}: {why}" for who, why in found["wrong"].items()]
    return "  ".join(words)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--build", action="append", default=[], metavar="NAME=LIBRARY=WHAT")
    parser.add_argument("--cells", nargs="+", default=[], metavar="LAYER:TOKENS,...:WAY,...")
    parser.add_argument("--run", default="layers", help="what the lines call this comparison")
    parser.add_argument("--out", type=Path, default=Path("layer_builds.jsonl"))
    parser.add_argument("--limit-s", type=float, default=230.0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        build.library = lambda: options.serve
        serve(Server(stand.hopper("bench_layer_builds")))
        return
    builds = [tuple(word.split("=", 2)) for word in options.build]
    if not builds or any(len(parts) < 3 for parts in builds):
        parser.error(f"--build: found {options.build or 'none'}, expected NAME=LIBRARY=WHAT")
    what = {name: said for name, _, said in builds}
    lines = lines_of(options.out, options.run)
    ways = not_yet(parse_cells(options.cells), lines, list(what))
    if not ways:
        parser.error("--cells: nothing is left to measure")
    workers = [Worker.start(name, [*SERVE, path]) for name, path, _ in builds]

    def one(now: Sequence[Worker], name: str, tokens: int, machine: Machine) -> sweep.Found:
        for found in measure(now, name, tokens, ways[name, tokens], machine):
            yield {"record": "layer_builds", "run": options.run, **found}, line_of(found)

    said = {(line["build"], line["what"]) for line in lines if line["record"] == "build"}
    news = [
        {"record": "build", "run": options.run, "build": b, "what": w} for b, w in what.items() if (b, w) not in said
    ]
    sweep.run(workers, list(ways), one, options.out, options.limit_s, news)


if __name__ == "__main__":
    main()
