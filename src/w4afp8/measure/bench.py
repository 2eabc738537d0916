"""`bench gemm` and `bench moe`: every cell of some shapes, beside the floor and a peer, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from w4afp8.kernels import schedules
from w4afp8.kernels.calls import GemmCall
from w4afp8.measure import data
from w4afp8.measure.cells import Cell, Kind, PeerTime
from w4afp8.measure.floor import Machine, Work, gemm_work, layer_work
from w4afp8.measure.peers import Peer
from w4afp8.measure.shapes import Gemm, Layer, Shape
from w4afp8.measure.stand import Stand, spelled

Progress = Callable[[str, int, int], None]  # (what, done, total)


def run(
    kind: Kind,
    shapes: Sequence[Shape],
    tokens: Sequence[int],
    stand: Stand,
    machine: Machine,
    peer: Peer | None,
    on_progress: Progress,
) -> Iterator[Cell]:
    """The cells, one at a time as they are measured."""
    for shape in shapes:
        if kind == "moe":
            if shape.layer:
                yield from _layer(shape.layer, tokens, stand, machine, peer, on_progress)
        else:
            for gemm in shape.gemms:
                yield from _gemm(gemm, tokens, stand, machine, peer, on_progress)


def _gemm(
    gemm: Gemm, tokens: Sequence[int], stand: Stand, machine: Machine, peer: Peer | None, on_progress: Progress
) -> Iterator[Cell]:
    weights = data.weights(gemm, stand.device)
    theirs = peer.gemm(gemm, len(weights)) if peer else None
    for done, m in enumerate(tokens):
        on_progress(gemm.name, done, len(tokens))
        drawn = data.routings(gemm, m, stand.device)
        if not drawn:
            continue
        calls = data.gemm_calls(weights, drawn, gemm.cols)
        chosen = [schedules.choose(problem_of(gemm, call)) for call in calls]
        timing = stand.time([partial(stand.gemm, call, row, None) for call, row in zip(calls, chosen)])
        works = [gemm_work(gemm, r.rows, r.hit, r.distinct) for r in drawn]
        rows = statistics.mean(r.rows for r in drawn)
        beside = theirs.time(m, drawn, stand.time) if theirs else None
        names = " ".join(sorted({spelled(row) for row in chosen}))
        hit = statistics.mean(r.hit for r in drawn)
        yield _cell("gemm", gemm.name, m, rows, hit, works, machine, timing, names, beside)
    on_progress(gemm.name, len(tokens), len(tokens))
    del weights, theirs
    _forget(stand)


def _layer(
    layer: Layer, tokens: Sequence[int], stand: Stand, machine: Machine, peer: Peer | None, on_progress: Progress
) -> Iterator[Cell]:
    gate_up, down = (data.weight(gemm, stand.device) for gemm in layer.gemms)
    theirs = peer.layer(layer) if peer else None
    for done, m in enumerate(tokens):
        on_progress(layer.name, done, len(tokens))
        calls = data.layer_calls(layer, gate_up, down, m)
        how = stand.layer_schedule(calls[0])
        if how is None:
            continue
        counts = [data.local_counts(call) for call in calls]
        timing = stand.time([partial(stand.layer, call) for call in calls])
        works = [layer_work(layer, m, pairs, hit) for pairs, hit in counts]
        beside = theirs.time(calls, stand.time) if theirs else None
        rows, hit = (statistics.mean(count[i] for count in counts) for i in (0, 1))
        yield _cell("moe", layer.name, m, rows, hit, works, machine, timing, how, beside)
    on_progress(layer.name, len(tokens), len(tokens))
    del gate_up, down, theirs
    _forget(stand)


def _cell(
    kind: Kind,
    name: str,
    tokens: int,
    rows: float,
    hit: float,
    works: Sequence[Work],
    machine: Machine,
    timing: tuple[float, float],
    schedule: str,
    peer: PeerTime | None,
) -> Cell:
    moved, flops = statistics.mean(w.bytes for w in works), statistics.mean(w.flops for w in works)
    floor = statistics.mean(w.floor_us(machine) for w in works)
    bound, (us, spread) = Work(moved, flops).bound(machine), timing
    read_us = machine.read_us(moved)
    return Cell(kind, name, tokens, rows, hit, moved, flops, floor, bound, read_us, us, spread, schedule, peer)


def problem_of(gemm: Gemm, call: GemmCall) -> schedules.Problem:
    """What the host knows of one call."""
    return schedules.Problem(len(call.x), gemm.experts, gemm.rows, gemm.cols)


def expected_rows(gemm: Gemm, tokens: int) -> int:
    """Rows of x that reach this rank's experts on average, as `kernels.sm90.fused_moe` counts them."""
    if gemm.top_k == 0:
        return tokens
    return max(1, tokens * gemm.top_k * gemm.experts // gemm.routed)


def _forget(stand: Stand) -> None:
    if stand.device.type == "cuda":
        torch.cuda.empty_cache()
