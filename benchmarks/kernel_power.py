#!/usr/bin/env python3
"""How much of a kernel's time is the card's power limit: time, clock and power while one call is repeated for a second.

    python benchmarks/kernel_power.py [--cells R1.gate_up:64,2048,4096 dense.o:8192] [--out FILE.jsonl]

Each cell twice, with random x and with x of zeros: the same instructions and bytes, but in the tensor cores nothing
switches.  Where zeros are faster and the clock is higher, power was the limit, not the kernel.  Beside them a plain
read of 4 GiB and torch's own e4m3 product, which every floor stands on.  nvidia-smi samples every 20 ms; of each
second the last half counts.  Clocks are left as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from bench_gemm_builds import parse_cells
from gemm_server import GEMMS
from w4afp8.kernels import schedules
from w4afp8.kernels.schedules import Problem
from w4afp8.measure import ceilings, data, stand
from w4afp8.measure.about import about

CELLS = ("R1.gate_up:64,1024,2048,4096,8192", "OSS.down:4096", "TP8.down:4096", "dense.o:8192", "dense.kv_b:8192")
SECONDS, PAUSE = 1.0, 0.3
FIELDS = "power.draw.instant,clocks.sm"
SAMPLER = ("nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "--loop-ms=20", "--id=0")


@contextmanager
def sampled() -> Iterator[list[tuple[float, float]]]:
    """(watts, MHz) of the GPU, filled in when the block ends."""
    found: list[tuple[float, float]] = []
    with subprocess.Popen(SAMPLER, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            process.terminate()
            lines, _ = process.communicate()
            found += samples(lines)


def samples(lines: str) -> list[tuple[float, float]]:
    """What nvidia-smi printed, without lines that say that it does not know."""
    found = []
    for line in lines.splitlines():
        with suppress(ValueError):
            watts, mhz = map(float, line.split(","))
            found.append((watts, mhz))
    return found


def sustained(calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    """Repeats a graph of the calls; microseconds of one call, watts and MHz of the last half."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    for event in events:
        event.record()
        graph.replay()
    torch.cuda.synchronize()
    once_s = events[0].elapsed_time(events[1]) / 1e3
    half = max(3, round(SECONDS / 2 / once_s))
    time.sleep(PAUSE)
    each = [torch.cuda.Event(enable_timing=True) for _ in range(half + 1)]  # type: ignore[no-untyped-call]
    with sampled() as seen:
        for _ in range(half):
            graph.replay()
        for event in each[:-1]:
            event.record()
            graph.replay()
        each[-1].record()
        torch.cuda.synchronize()
    us = [a.elapsed_time(b) * 1e3 / len(calls) for a, b in pairwise(each)]
    busy = seen[len(seen) // 2 : -1] or seen  # the program that samples starts later than the kernel
    if not busy:
        raise SystemExit(
            f"nvidia-smi gave no sample of {FIELDS}: does it know the GPU that torch.cuda uses as number 0?"
        )
    watts, mhz = zip(*busy, strict=True)
    return {"us": statistics.median(us), "watts": statistics.median(watts), "sm_mhz": statistics.median(mhz)}


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="GEMM:TOKENS,...")
    parser.add_argument("--out", type=Path, default=Path("power.jsonl"))
    options = parser.parse_args()
    on = stand.hopper("kernel_power")

    def say(what: str, tokens: int | None, x: str | None, found: dict[str, float], schedule: str | None = None) -> None:
        line = {"record": "power", "shape": what, "tokens": tokens, "x": x, "schedule": schedule, **found, **about()}
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        words = f"{found['us']:9.1f} us {found['watts']:4.0f} W {found['sm_mhz']:5.0f} MHz"
        print(f"{what:20} {tokens or '':5} {x or '':7} {schedule or '':8} {words}", flush=True)

    memory = ceilings.memory()
    say("plain read of 4 GiB", None, None, sustained(ceilings.plain_reads(memory, len(memory))[0]))
    del memory
    say("torch._scaled_mm", None, None, sustained([ceilings.product()]))
    weights: dict[str, list[data.Weight]] = {}
    for name, tokens in parse_cells(options.cells):
        gemm = GEMMS[name]
        if name not in weights:
            weights.clear()
            weights[name] = data.weights(gemm, on.device)
        calls = data.gemm_calls(weights[name], data.routings(gemm, tokens, on.device), gemm.cols)
        row = schedules.choose(Problem(len(calls[0].x), gemm.experts, gemm.rows, gemm.cols))
        for x, kept in (("random", calls), ("zeros", [c._replace(x=torch.zeros_like(c.x)) for c in calls])):
            say(name, tokens, x, sustained([partial(on.gemm, call, row, None) for call in kept]), stand.spelled(row))


if __name__ == "__main__":
    main()
