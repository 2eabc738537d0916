#!/usr/bin/env python3
"""Times every way of the fused MoE layer beside the others in one run, and a peer's layer beside them.

    python benchmarks/bench_layer_ways.py [--cells R1:1,8,64 TP8:1] [--peer humming] [--out FILE.jsonl] [--limit-s 110]

The ways: every kernel of one launch that can run the cell (`kernels/layers.py`), and several launches under the
schedules that the tables choose.  Each is compared with the plain twin, looked at, and timed in full when it is near
the fastest, as `w4afp8 tune moe` does; then the fastest way and the peer take turns, ours first, and the median of the
turns is the cell's time.

One JSON line a cell, as `w4afp8 bench moe --out` writes them, with `way`, `ways` (microseconds of each), `turns_us`,
`peer_turns_us` and `wrong` beside.  A cell that stands in FILE already is not measured again; after --limit-s no
further cell is begun.  A cell that fails or hangs is said, its process is started anew, the next cell is measured.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sweep
from bench_gemm_builds import measured
from peer_turns import PeerTurns
from w4afp8.kernels.calls import MoECall
from w4afp8.kernels.layers import OneLaunch
from w4afp8.measure import cells, data, stand, tune
from w4afp8.measure.cells import Cell
from w4afp8.measure.floor import Machine, Work, layer_work
from w4afp8.measure.peers import get as get_peer
from w4afp8.measure.shapes import NAMED
from w4afp8.measure.stand import SEVERAL, Stand
from worker import Worker, serve

LAYERS = {shape.layer.name: shape.layer for shape in NAMED.values() if shape.layer}
SERVE = (sys.executable, __file__, "--serve")
TURNS = 3
# The bars' edges first, then a few of every regime, then the rest; weights stay in memory for the next round.
ROUNDS: tuple[dict[str, tuple[int, ...]], ...] = (
    {"TP8": (1, 8, 64, 256, 1024, 4096), "R1": (1, 8, 64, 512, 1024, 4096), "EP8": (8, 64, 512, 4096), "OSS": (8, 512)},
    {"TP8": (16, 32, 128, 512, 2048), "R1": (128, 256, 2048), "EP8": (1, 32, 128, 1024), "OSS": (1, 64, 128, 4096)},
    {"TP8": (8192,), "R1": (16, 32, 8192), "EP8": (16, 256, 2048, 8192), "OSS": (16, 32, 256, 1024, 2048, 8192)},
)


def rows_by_name() -> dict[str, OneLaunch | None]:
    """Every way of a layer: kernels of one launch; None: several launches."""
    return {SEVERAL: None, **{row.kernel: row for row in tune.WAYS if row}}


class Server:
    """Measures layers."""

    def __init__(self, on: Stand) -> None:
        self.on = on
        self.weights: dict[str, tuple[data.Weight, data.Weight]] = {}
        self.theirs: dict[str, Any] = {}
        self.calls: list[MoECall] = []

    def prepare(self, name: str, tokens: int) -> dict[str, Any]:
        """What a cell is."""
        layer = LAYERS[name]
        if name not in self.weights:
            gate_up, down = (data.weight(gemm, self.on.device) for gemm in layer.gemms)
            self.weights[name] = gate_up, down
        self.calls = []  # of the cell before
        self.calls = data.layer_calls(layer, *self.weights[name], tokens)
        counts = [data.local_counts(call) for call in self.calls]
        works = [layer_work(layer, tokens, pairs, hit) for pairs, hit in counts]
        return {
            "rows": statistics.mean(pairs for pairs, _ in counts),
            "hit": statistics.mean(hit for _, hit in counts),
            "bytes": statistics.mean(work.bytes for work in works),
            "flops": statistics.mean(work.flops for work in works),
        }

    def cell(self, name: str, tokens: int) -> dict[str, Any]:
        """One cell without the peer: what it is, the fastest way and all ways."""
        about = self.prepare(name, tokens)
        found = tune.fastest_way(LAYERS[name], tokens, self.calls, (), self.on, lambda way: None)
        self.way = found.chosen
        how = stand.layer_schedule(self.calls[0], SEVERAL) if found.chosen == SEVERAL else f"{found.chosen}, one launch"
        return {
            **about, "us": found.timing.us, "spread_us": found.timing.spread_us, "schedule": how,
            "beside": {"way": found.chosen, "ways": dict(found.tried), "wrong": dict(found.wrong)},
        }  # fmt: skip

    def again(self) -> float:
        """Microseconds of the cell before under its fastest way, once more."""
        row = rows_by_name()[self.way]
        return float(self.on.time([partial(self.on.way, call, row, None) for call in self.calls]).us)

    def peer(self, peer: str, name: str) -> dict[str, Any] | None:
        """The peer's time of the cell before."""
        if name not in self.theirs:
            self.theirs[name] = get_peer(peer).layer(LAYERS[name])
        found = self.theirs[name].time(self.calls, self.on.time)
        return found and {key: getattr(found, key) for key in cells.PeerTime.__dataclass_fields__}

    def machine(self) -> dict[str, Any]:
        """What this machine does at most, and what it is."""
        return {**self.on.about, **self.on.ceilings().to_json()}


def measure(
    worker: Worker, name: str, tokens: int, machine: Machine, peer: str | None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """One cell, and what stands beside."""
    found = worker.ask("cell", name, tokens)
    turns = [found["us"]]
    theirs = PeerTurns(worker, peer, name) if peer else PeerTurns(worker)
    theirs.ask()
    for _ in range(TURNS - 1):
        turns.append(worker.ask("again"))
        theirs.ask()
    work, beside = Work(found["bytes"], found["flops"]), found.pop("beside")
    found["us"], beside["turns_us"] = statistics.median(turns), turns
    floor, bound, read = work.floor_us(machine), work.bound(machine), machine.read_us(work.bytes)
    beside["peer_turns_us"] = theirs.each_us
    yield Cell("moe", name, tokens, floor_us=floor, bound=bound, read_us=read, peer=theirs.time, **found), beside
    if theirs.failed:
        raise theirs.failed


def parse_cells(words: Sequence[str]) -> list[tuple[str, int]]:
    """R1:1,8 -> (R1, 1), (R1, 8); none: all, in rounds."""
    if not words:
        return [(name, m) for one in ROUNDS for name, tokens in one.items() for m in tokens]
    found = []
    for word in words:
        name, _, tokens = word.partition(":")
        if name not in LAYERS or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", tokens):
            raise SystemExit(f"--cells {word}: expected a layer and numbers of tokens; layers: {', '.join(LAYERS)}")
        found += [(name, int(m)) for m in tokens.split(",")]
    return found


def line_of(cell: Cell, beside: dict[str, Any]) -> str:
    """For whoever watches."""
    words = [f"{cell.shape:4} {cell.tokens:5} x{cell.x_floor:.3f} {beside['way']:8} {cell.us:9.2f} "]
    words += [f"{way} {us:.2f}" for way, us in beside["ways"].items() if way != beside["way"]]
    words += [f"{cell.peer.name} {cell.peer.us:9.2f} {cell.ratio:.3f}"] if cell.peer else []
    return " ".join([*words, str(beside["wrong"] or "")])


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=[], metavar="LAYER:TOKENS,...")
    parser.add_argument("--peer")
    parser.add_argument("--out", type=Path, default=Path("layers.jsonl"))
    parser.add_argument("--limit-s", type=float, default=110.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Server(stand.hopper("bench_layer_ways")))
        return
    done = {(name, m) for name, m, _ in measured(options.out, options.peer, "moe")}
    wanted = [cell for cell in parse_cells(options.cells) if cell not in done]

    def one(now: Sequence[Worker], name: str, tokens: int, machine: Machine) -> sweep.Found:
        for cell, beside in measure(now[0], name, tokens, machine, options.peer):
            yield sweep.record_of(cell, beside), line_of(cell, beside)

    sweep.run([Worker.start("layers", SERVE)], wanted, one, options.out, options.limit_s)


if __name__ == "__main__":
    main()
