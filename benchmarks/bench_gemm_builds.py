#!/usr/bin/env python3
"""Times several builds of the kernels on the same cells in one run, and a peer beside them.

    python -m w4afp8.kernels.build          # in a checkout of each commit; then its src/w4afp8/kernels/_sm90.so is
    python benchmarks/bench_gemm_builds.py --build v6=OLD.so --build new=NEW.so --cells R1.gate_up:1024,4096 dense.o:256
                                           [--peer humming] [--codes 7] [--most 4] [--out FILE.jsonl] [--limit-s 230]
    python benchmarks/bench_gemm_builds.py --prepare humming --cells all     # beforehand: what the peer compiles

Each build is served by a process of its own, all with this checkout's Python; a commit whose ops take other arguments
is refused in every schedule, and wants this checkout's bindings.cpp and params.h.  A cell's likely schedules (of each
family of kernels up to --most that the cost model puts near its best, and the tuned one) are compared with float64,
looked at, and the fastest three, if they are near each other, timed in turns: build after build, the peer, then all in
the reverse order, so that a warmer card favours none.  The median of the turns counts: at its power limit a card drops
its clocks for tenths of a second now and then, which a single measurement cannot tell from a slower kernel.  What is
faster by less than a build's own times differ is noise.

`--cells all`: every named GEMM at every number of tokens, in three rounds of which each has all GEMMs and every
regime, so that a run that ends early is a sample; weights stay in memory for the next round.  `--codes 7`: weights
without a code -8, for which a peer may have other kernels.

One JSON line a cell and build, as `w4afp8 bench gemm --out` writes them, with `build`, `codes`, `plain_us`,
`cluster_us`, `turns_us` and `peer_turns_us` beside.  A cell that stands in FILE already is not measured again; after
--limit-s no further cell is begun.  A cell that fails or hangs is said, its processes are started anew, the next cell
is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import digits
from typing import Any

import torch

import sweep
from gemm_server import GEMMS, SERVE
from peer_turns import PeerTurns
from w4afp8.kernels import schedules, tuned
from w4afp8.kernels.schedules import Problem, Schedule
from w4afp8.measure import cells, data
from w4afp8.measure.cells import Cell
from w4afp8.measure.floor import Machine, Work
from w4afp8.measure.peers import get as get_peer
from w4afp8.measure.shapes import Gemm
from w4afp8.measure.stand import spelled
from worker import Worker

NEAR, MOST = 1.4, 6  # of the cheapest by the cost model; so many rows of a family
CLOSE, CONTENDERS = 1.05, 3  # of the fastest look: so many are timed
TURNS = 4
ROUNDS = ((64, 1024, 1, 4096), (256, 16, 2048, 8), (512, 128, 32, 8192))  # of `--cells all`


def family(row: Schedule) -> str:
    """Its name without the number: kernels that differ in more than the tokens of a tile."""
    return row.kernel.translate(dict.fromkeys(map(ord, digits)))


def likely(gemm: Gemm, rows: int, clusters: Sequence[int] = (1, 2), most: int = MOST) -> list[Schedule]:
    """The schedules worth a look for so many rows of x, of every family the cheapest and the one in the table."""
    problem = Problem(rows, gemm.experts, gemm.rows, gemm.cols)
    runs = [row for row in schedules.ROWS if not row.refusals(problem)]
    cost = {row: schedules.cost_us(problem, row) for row in runs}
    measured = tuned.lookup(gemm.experts, gemm.rows, gemm.cols, rows)
    kinds: dict[str, list[Schedule]] = {}
    for row in sorted((row for row in runs if row.cluster in clusters), key=lambda row: cost[row]):
        kind = kinds.setdefault(family(row), [])
        if (len(kind) < most and cost[row] <= NEAR * min(cost.values())) or (row.kernel, row.split_groups) == measured:
            kind.append(row)
    return [row for kind in kinds.values() for row in kind]


def contenders(looks: dict[str, float]) -> list[str]:
    """The schedules worth timing: a look is short, and the second fastest may be the fastest."""
    near = [name for name in looks if looks[name] <= CLOSE * min(looks.values())]
    return sorted(near, key=lambda name: looks[name])[:CONTENDERS]


def fastest(us: dict[str, float], cluster: bool) -> str | None:
    clusters = {spelled(row) for row in schedules.ROWS if row.cluster > 1}
    mine = {name: time for name, time in us.items() if (name in clusters) == cluster}
    return min(mine, key=lambda name: mine[name]) if mine else None


def measure(
    workers: Sequence[Worker],
    name: str,
    tokens: int,
    machine: Machine,
    peer: str | None,
    rows_of: Callable[[Gemm, int], Sequence[Schedule]] = likely,
    least: int = -8,
) -> Iterator[tuple[str, Cell, dict[str, Any]]]:
    """One cell of every build: (build, the cell, what stands beside)."""
    for worker in workers:
        worker.send("cell", name, tokens, least)
    (about, *_) = [worker.answer() for worker in workers]
    if not about["rows"]:
        return
    rows = [spelled(row) for row in rows_of(GEMMS[name], round(about["rows"]))]
    looks = {worker.name: worker.ask("look", rows) for worker in workers}
    chosen = {w.name: contenders(looks[w.name]["right"]) for w in workers}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    theirs = PeerTurns(workers[0], peer, tokens) if peer else PeerTurns(workers[0])

    def time_row(worker: Worker, row: str) -> None:
        times.setdefault((worker.name, row), []).append(tuple(worker.ask("time", row)))

    ours = [partial(time_row, worker, row) for worker in workers for row in chosen[worker.name]]
    turn: list[Callable[[], None]] = [*ours, theirs.ask]
    for number in range(TURNS):
        for step in turn[:: -1 if number % 2 else 1]:
            step()
    work = Work(about["bytes"], about["flops"])
    for worker in workers:
        mine = {row: found for (who, row), found in times.items() if who == worker.name}
        if not mine:
            print(f"{name} M={tokens} {worker.name}: no schedule is right: {looks[worker.name]['wrong']}")
            continue
        us = {row: statistics.median(t for t, _ in found) for row, found in mine.items()}
        best = min(us, key=lambda row: us[row])
        cell = Cell(
            "gemm", name, tokens, about["rows"], about["hit"], work.bytes, work.flops, work.floor_us(machine),
            work.bound(machine), machine.read_us(work.bytes), us[best], max(s for _, s in mine[best]), best,
            theirs.time,
        )  # fmt: skip
        plain, cluster = fastest(us, False), fastest(us, True)
        wrong = {row: why for row, why in looks[worker.name]["wrong"].items() if "was compiled" not in why}
        yield worker.name, cell, {
            "codes": f"{least}..7",
            "plain": plain, "plain_us": us.get(plain or ""), "cluster": cluster, "cluster_us": us.get(cluster or ""),
            "turns_us": [t for t, _ in mine[best]], "peer_turns_us": theirs.each_us,
            "looks": looks[worker.name]["right"], "wrong": wrong,
        }  # fmt: skip
    if theirs.failed:
        raise theirs.failed


def parse_cells(words: Sequence[str]) -> list[tuple[str, int]]:
    """R1.down:64,128 -> (R1.down, 64), (R1.down, 128); all -> see above."""
    if list(words) == ["all"]:
        return [(name, m) for tokens in ROUNDS for name in GEMMS for m in tokens]
    found = []
    for word in words:
        name, _, tokens = word.partition(":")
        if name not in GEMMS:
            raise SystemExit(f"--cells {word}: expected one of {', '.join(GEMMS)} and numbers of tokens")
        found += [(name, int(m)) for m in tokens.split(",")]
    return found


def what_rows(wanted: Sequence[tuple[str, int]], least: int, device: torch.device) -> dict[Gemm, list[int]]:
    """How many rows of x the cells have, by GEMM: what a peer prepares for."""
    found: dict[Gemm, list[int]] = {}
    for name, tokens in wanted:
        gemm = replace(GEMMS[name], least=least)
        found.setdefault(gemm, []).extend(r.rows for r in data.routings(gemm, tokens, device))
    return found


def measured(path: Path, peer: str | None, kind: cells.Kind = "gemm") -> set[tuple[str, int, str]]:
    """The cells that stand in a file, with the peer if there is to be one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records = (r for r in map(json.loads, lines) if r["record"] == kind)
    return {(r["shape"], r["tokens"], r.get("codes", "-8..7")) for r in records if not peer or "peer" in r}


def line_of(who: str, cell: Cell, beside: dict[str, Any]) -> str:
    """For whoever watches."""
    words = [f"{cell.shape:20} {cell.tokens:5} {who:8} x{cell.x_floor:.3f}"]
    words += [f"{beside[k]} {beside[k + '_us']:9.2f}" for k in ("plain", "cluster") if beside[k]]
    words += [f"{cell.peer.name} {cell.peer.us:9.2f} {cell.ratio:.3f}"] if cell.peer else []
    return " ".join([*words, str(beside["wrong"] or "")])


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--build", action="append", default=[], metavar="NAME=LIBRARY")
    parser.add_argument("--cells", nargs="+", default=[], metavar="GEMM:TOKENS,...")
    parser.add_argument("--peer")
    parser.add_argument("--no-clusters", action="store_true", help="leave out the kernels that run as pairs of blocks")
    parser.add_argument("--out", type=Path, default=Path("builds.jsonl"))
    parser.add_argument("--limit-s", type=float, default=230.0)
    parser.add_argument("--codes", type=int, choices=(7, 8), default=8, help="the largest size of a code")
    parser.add_argument("--most", type=int, default=MOST, help="so many schedules of a family are looked at")
    parser.add_argument("--prepare", metavar="PEER", help="only let the peer compile what it runs in these cells")
    options = parser.parse_args()
    begin = time.monotonic()
    least = -options.codes
    wanted = parse_cells(options.cells)
    if options.prepare:
        number = get_peer(options.prepare).prepare(what_rows(wanted, least, torch.device("cuda")))
        print(f"{options.prepare} is prepared in {number} modes of GEMMs, {time.monotonic() - begin:.0f} s")
        return
    if not options.build:
        parser.error("--build: found none, expected NAME=LIBRARY")
    done = measured(options.out, options.peer)
    wanted = [(name, m) for name, m in wanted if (name, m, f"{least}..7") not in done]
    rows_of = partial(likely, clusters=(1,) if options.no_clusters else (1, 2), most=options.most)
    workers = [Worker.start(name, [*SERVE, path]) for name, _, path in (w.partition("=") for w in options.build)]

    def one(now: Sequence[Worker], name: str, tokens: int, machine: Machine) -> sweep.Found:
        for who, cell, beside in measure(now, name, tokens, machine, options.peer, rows_of, least):
            yield sweep.record_of(cell, {"build": who, **beside}), line_of(who, cell, beside)

    sweep.run(workers, wanted, one, options.out, options.limit_s)


if __name__ == "__main__":
    main()
