"""One build of the kernels in a process of its own, as `bench_gemm_builds.py` asks it.

    python benchmarks/gemm_server.py LIBRARY.so

It is asked as worker.py says.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from w4afp8.kernels import build, schedules
from w4afp8.kernels.schedules import Schedule
from w4afp8.measure import data, stand, truth
from w4afp8.measure.cells import PeerTime
from w4afp8.measure.floor import gemm_work
from w4afp8.measure.peers import get as get_peer
from w4afp8.measure.shapes import NAMED, Gemm
from w4afp8.measure.stand import Stand, spelled
from worker import serve

GEMMS = {gemm.name: gemm for shape in NAMED.values() for gemm in shape.gemms}
LOOK_REPLAYS = 4
TURN_REPLAYS = 7
ROOM_BYTES = 64e9  # with less free memory, other GEMMs' weights go before new ones are made
SERVE = (sys.executable, __file__)


class Server:
    """One build: answers a line of JSON with a line of JSON."""

    def __init__(self, on: Stand) -> None:
        self.on = on
        self.weights: dict[Gemm, list[data.Weight]] = {}
        self.theirs: dict[Gemm, Any] = {}
        self.calls: list[Any] = []

    def cell(self, name: str, tokens: int, least: int = -8) -> dict[str, Any]:
        """Prepare a cell; what it is.  No row of x may come to a rank of few experts: then `rows` is 0."""
        self.gemm, self.calls = replace(GEMMS[name], least=least), []
        if self.gemm not in self.weights:
            self._make_room()
            self.weights[self.gemm] = data.weights(self.gemm, self.on.device)
        self.drawn = data.routings(self.gemm, tokens, self.on.device)
        if not self.drawn:
            return {"rows": 0}
        self.calls = data.gemm_calls(self.weights[self.gemm], self.drawn, self.gemm.cols)
        if self.on.device.type == "cuda":
            torch.cuda.synchronize()  # the others are timed next
        works = [gemm_work(self.gemm, r.rows, r.hit, r.distinct) for r in self.drawn]
        return {
            "rows": statistics.mean(r.rows for r in self.drawn),
            "hit": statistics.mean(r.hit for r in self.drawn),
            "bytes": statistics.mean(w.bytes for w in works),
            "flops": statistics.mean(w.flops for w in works),
        }

    def _make_room(self) -> None:
        if self.on.device.type == "cuda":
            torch.cuda.empty_cache()
            if torch.cuda.mem_get_info()[0] < ROOM_BYTES:
                self.weights.clear()
                self.theirs.clear()
                torch.cuda.empty_cache()

    def look(self, names: Sequence[str]) -> dict[str, Any]:
        """Microseconds of each schedule that is right; what is wrong with the others."""
        rows = {spelled(row): row for row in schedules.ROWS}
        exact = truth.sample(self.calls[0])
        right, wrong = {}, {}
        for name in names:
            try:
                error = exact.error(self.on.gemm(self.calls[0], rows[name], truth.poisoned(self.calls[0])))
            except RuntimeError as refused:  # a kernel that this build has not
                if "CUDA error" in str(refused):
                    raise
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

    def _time(self, row: Schedule, replays: int = TURN_REPLAYS) -> tuple[float, float]:
        found = self.on.time([partial(self.on.gemm, call, row, None) for call in self.calls], replays=replays)
        return found.us, found.spread_us

    def peer(self, name: str, tokens: int) -> dict[str, Any] | None:
        """The peer's time of this cell."""
        if self.gemm not in self.theirs:
            self.theirs[self.gemm] = get_peer(name).gemm(self.gemm, len(self.weights[self.gemm]))
        found = self.theirs[self.gemm].time(tokens, self.drawn, partial(self.on.time, replays=TURN_REPLAYS))
        return found and {key: getattr(found, key) for key in PeerTime.__dataclass_fields__}

    def machine(self) -> dict[str, Any]:
        """What this machine does at most, and what it is."""
        return {**self.on.about, **self.on.ceilings().to_json()}


if __name__ == "__main__":
    library = Path(sys.argv[1])
    build.library = lambda: library
    serve(Server(stand.hopper("gemm_server")))
