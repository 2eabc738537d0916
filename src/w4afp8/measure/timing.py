"""A clock for GPU work: CUDA graphs that cycle over several inputs, so that no replay finds its weights in L2."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]


class Timing(NamedTuple):
    """Of one call, in microseconds: the median of the replays, and their 90th less their 10th percentile."""

    us: float
    spread_us: float


Timer = Callable[..., Timing]  # (calls, replays=...) -> Timing
REPLAYS = 15
TARGET_US = 600.0  # of one replay: long beside the clock's own steps
MOST_CALLS = 64  # in one graph


def graph_time(calls: Sequence[Call], replays: int = REPLAYS) -> Timing:
    """Time one call of a graph that cycles over `calls`; two replays warm up."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin, end = _event(), _event()
    begin.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    once = begin.elapsed_time(end) * 1e3
    rounds = max(1, min(math.ceil(TARGET_US / once), MOST_CALLS // len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    events = [(_event(), _event()) for _ in range(replays)]
    graph.replay()
    graph.replay()
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return summary([begin.elapsed_time(end) * 1e3 / (rounds * len(calls)) for begin, end in events])


def summary(each_us: Sequence[float]) -> Timing:
    """Median and spread of single measurements."""
    ordered = sorted(each_us)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.9 * last)] - ordered[round(0.1 * last)])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
