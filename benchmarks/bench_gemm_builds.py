#!/usr/bin/env python3
"""Times several builds of the kernels on the same cells in one run, and a peer beside them.

    python -m w4afp8.kernels.build          # in a checkout of each commit; then its src/w4afp8/kernels/_sm90.so is
    python benchmarks/bench_gemm_builds.py --build v6=OLD.so --build new=NEW.so --cells R1.gate_up:1024,4096 dense.o:256
                                           [--peer humming] [--out FILE.jsonl] [--limit-s 230]

Each build is served by a process of its own, all with this checkout's Python.  A cell's likely schedules (those the
cost model puts near its best, and the tuned one) are compared with float64, looked at, and the fastest with and without
clusters timed in full, build after build and then in the reverse order, so that a warmer card favours none.  What is
faster by less than the difference of a build's own two times is noise.

One JSON line a cell and build, as `w4afp8 bench gemm --out` writes them, with `build`, `plain_us`, `cluster_us` and
`twice_us` beside.  A cell that stands in FILE already is not measured again; after --limit-s no further cell is begun.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from w4afp8.kernels import build, schedules, tuned
from w4afp8.kernels.schedules import Problem, Schedule
from w4afp8.measure import cells, data, stand, truth
from w4afp8.measure.cells import Cell, PeerTime
from w4afp8.measure.floor import Machine, Work, gemm_work
from w4afp8.measure.peers import get as get_peer
from w4afp8.measure.shapes import NAMED, Gemm
from w4afp8.measure.stand import Stand, spelled

GEMMS = {gemm.name: gemm for shape in NAMED.values() for gemm in shape.gemms}
NEAR, MOST = 1.4, 6  # of the cheapest by the cost model; so many rows of either kind
LOOK_REPLAYS = 4


def likely(gemm: Gemm, rows: int, clusters: Sequence[int] = (1, 2)) -> list[Schedule]:
    """The schedules worth a look for so many rows of x, those of one block and those of a cluster of two."""
    problem = Problem(rows, gemm.experts, gemm.rows, gemm.cols)
    runs = [row for row in schedules.ROWS if not row.refusals(problem)]
    least = min(schedules.cost_us(problem, row) for row in runs)
    measured = tuned.lookup(gemm.experts, gemm.rows, gemm.cols, rows)
    found = []
    for cluster in clusters:
        kind = sorted((r for r in runs if r.cluster == cluster), key=lambda r: schedules.cost_us(problem, r))
        near = [r for r in kind if schedules.cost_us(problem, r) <= NEAR * least][:MOST]
        found += near + [r for r in kind if (r.kernel, r.split_groups) == measured and r not in near]
    return found


class Server:
    """One build: answers a line of JSON with a line of JSON."""

    def __init__(self, on: Stand) -> None:
        self.on, self.gemm, self.weights, self.theirs = on, Gemm("none", 64, 128), [], None
        self.calls: list[Any] = []

    def cell(self, name: str, tokens: int) -> dict[str, Any]:
        """Prepare a cell; what it is."""
        if self.gemm.name != name:
            self.gemm, self.weights, self.theirs, self.calls = GEMMS[name], [], None, []
            self.weights = data.weights(self.gemm, self.on.device)
        self.drawn = data.routings(self.gemm, tokens, self.on.device)
        self.calls = data.gemm_calls(self.weights, self.drawn, self.gemm.cols)
        if self.on.device.type == "cuda":
            torch.cuda.synchronize()  # the others are timed next
        works = [gemm_work(self.gemm, r.rows, r.hit, r.distinct) for r in self.drawn]
        return {
            "rows": statistics.mean(r.rows for r in self.drawn),
            "hit": statistics.mean(r.hit for r in self.drawn),
            "bytes": statistics.mean(w.bytes for w in works),
            "flops": statistics.mean(w.flops for w in works),
        }

    def look(self, names: Sequence[str]) -> dict[str, Any]:
        """Microseconds of each schedule that is right; what is wrong with the others."""
        rows = {spelled(row): row for row in schedules.ROWS}
        exact = truth.sample(self.calls[0])
        right, wrong = {}, {}
        for name in names:
            try:
                error = exact.error(self.on.gemm(self.calls[0], rows[name], truth.poisoned(self.calls[0])))
            except RuntimeError as refused:  # a kernel that this build has not
                wrong[name] = str(refused).partition("\n")[0]
                continue
            if error <= truth.WORST_ERROR:
                right[name] = self._time(rows[name], LOOK_REPLAYS)[0]
            else:
                wrong[name] = f"an error of {error:.3g}"
        return {"right": right, "wrong": wrong}

    def time(self, name: str) -> tuple[float, float]:
        """Microseconds and spread of one schedule."""
        return self._time({spelled(row): row for row in schedules.ROWS}[name])

    def _time(self, row: Schedule, replays: int = 15) -> tuple[float, float]:
        return tuple(self.on.time([partial(self.on.gemm, call, row, None) for call in self.calls], replays=replays))

    def peer(self, name: str, tokens: int) -> dict[str, Any] | None:
        """The peer's time of this cell."""
        if self.theirs is None:
            self.theirs = get_peer(name).gemm(self.gemm, len(self.weights))
        found = self.theirs.time(tokens, self.drawn, self.on.time)
        return found and {key: getattr(found, key) for key in PeerTime.__dataclass_fields__}

    def machine(self) -> dict[str, Any]:
        """What this machine does at most, and what it is."""
        return {**self.on.about, **self.on.ceilings().to_json()}

    def serve(self, lines: Iterator[str]) -> None:
        """Until there are no more."""
        answers = sys.stdout
        sys.stdout = sys.stderr  # whatever a peer prints
        for line in lines:
            verb, *words = json.loads(line)
            print(json.dumps(getattr(self, verb)(*words)), file=answers, flush=True)


@dataclass
class Worker:
    """A build's process."""

    name: str
    process: subprocess.Popen[str]

    @staticmethod
    def start(name: str, path: str) -> Worker:
        """See `Server`."""
        command = [sys.executable, __file__, "--serve", path]
        return Worker(name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def send(self, verb: str, *words: Any) -> None:
        assert self.process.stdin
        print(json.dumps([verb, *words]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process has ended, see above")
        return json.loads(line)

    def ask(self, verb: str, *words: Any) -> Any:
        self.send(verb, *words)
        return self.answer()


def fastest(looks: dict[str, float], cluster: bool) -> str | None:
    clusters = {spelled(row) for row in schedules.ROWS if row.cluster > 1}
    mine = {name: us for name, us in looks.items() if (name in clusters) == cluster}
    return min(mine, key=lambda name: mine[name]) if mine else None


def measure(
    workers: Sequence[Worker],
    name: str,
    tokens: int,
    machine: Machine,
    peer: str | None,
    clusters: Sequence[int] = (1, 2),
) -> Iterator[tuple[str, Cell, dict[str, Any]]]:
    """One cell of every build: (build, the cell, what stands beside)."""
    for worker in workers:
        worker.send("cell", name, tokens)
    (about, *_) = [worker.answer() for worker in workers]
    rows = [spelled(row) for row in likely(GEMMS[name], round(about["rows"]), clusters)]
    looks = {worker.name: worker.ask("look", rows) for worker in workers}
    chosen = {w.name: [fastest(looks[w.name]["right"], kind) for kind in (False, True)] for w in workers}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for order in (workers, workers[::-1]):
        for worker in order:
            for row in filter(None, chosen[worker.name]):
                times.setdefault((worker.name, row), []).append(tuple(worker.ask("time", row)))
    beside = workers[0].ask("peer", peer, tokens) if peer else None
    work = Work(about["bytes"], about["flops"])
    for worker in workers:
        mine = {row: found for (who, row), found in times.items() if who == worker.name}
        if not mine:
            print(f"{name} M={tokens} {worker.name}: no schedule is right: {looks[worker.name]['wrong']}")
            continue
        us = {row: statistics.mean(t for t, _ in found) for row, found in mine.items()}
        best = min(us, key=lambda row: us[row])
        cell = Cell(
            "gemm", name, tokens, about["rows"], about["hit"], work.bytes, work.flops, work.floor_us(machine),
            work.bound(machine), machine.read_us(work.bytes), us[best], max(s for _, s in mine[best]), best,
            PeerTime(**beside) if beside else None,
        )  # fmt: skip
        plain, cluster = chosen[worker.name]
        wrong = {row: why for row, why in looks[worker.name]["wrong"].items() if "was compiled" not in why}
        yield worker.name, cell, {
            "plain": plain, "plain_us": us.get(plain or ""), "cluster": cluster, "cluster_us": us.get(cluster or ""),
            "twice_us": [t for t, _ in mine[best]], "looks": looks[worker.name]["right"], "wrong": wrong,
        }  # fmt: skip


def parse_cells(words: Sequence[str]) -> list[tuple[str, int]]:
    """R1.down:64,128 -> (R1.down, 64), (R1.down, 128)."""
    found = []
    for word in words:
        name, _, tokens = word.partition(":")
        if name not in GEMMS:
            raise SystemExit(f"--cells {word}: expected one of {', '.join(GEMMS)} and numbers of tokens")
        found += [(name, int(m)) for m in tokens.split(",")]
    return found


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--build", action="append", default=[], metavar="NAME=LIBRARY")
    parser.add_argument("--cells", nargs="+", default=[], metavar="GEMM:TOKENS,...")
    parser.add_argument("--peer")
    parser.add_argument("--no-clusters", action="store_true", help="leave out the kernels that run as pairs of blocks")
    parser.add_argument("--out", type=Path, default=Path("builds.jsonl"))
    parser.add_argument("--limit-s", type=float, default=230.0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        build.library = lambda: options.serve
        Server(stand.hopper("bench_gemm_builds")).serve(iter(sys.stdin))
        return
    begin = time.monotonic()
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    done = {(r["shape"], r["tokens"]) for r in map(json.loads, lines) if r["record"] == "gemm"}
    clusters = (1,) if options.no_clusters else (1, 2)
    wanted = [cell for cell in parse_cells(options.cells) if cell not in done]
    workers = [Worker.start(*word.split("=", 1)) for word in options.build]
    said = workers[0].ask("machine")
    machine = Machine.from_json(said)
    about = {key: value for key, value in said.items() if isinstance(value, str)}
    cells.append(options.out, cells.machine_line(machine, about))
    for number, (name, tokens) in enumerate(wanted):
        if time.monotonic() - begin > options.limit_s:
            print(f"not begun, {len(wanted) - number} cells from {name}:{tokens} on; call again with the same --out")
            break
        for who, cell, beside in measure(workers, name, tokens, machine, options.peer, clusters):
            cells.append(options.out, json.dumps({**json.loads(cells.cell_line(cell, about)), "build": who, **beside}))
            words = [f"{name:20} {tokens:5} {who:8} x{cell.x_floor:.3f}"]
            words += [f"{beside[k]} {beside[k + '_us']:9.2f}" for k in ("plain", "cluster") if beside[k]]
            words += [f"{cell.peer.name} {cell.peer.us:9.2f} {cell.ratio:.3f}"] if cell.peer else []
            print(*words, beside["wrong"] or "", flush=True)
    for worker in workers:
        worker.process.stdin.close()
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
