"""What a measurement stands on: where tensors live, how calls are timed, what runs them.

`hopper` is the real one; tests put another clock on a CPU and the plain torch twins in the kernels' place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import w4afp8.kernels.ops  # noqa: F401  (registers torch.ops.w4afp8)
from w4afp8.errors import RecipeError
from w4afp8.kernels import layers, sm90, tuned
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.device import require_hopper
from w4afp8.kernels.layout import TILE_COLS, TILE_ROWS
from w4afp8.kernels.schedules import Problem, Schedule, choose
from w4afp8.measure import about, ceilings
from w4afp8.measure.floor import Machine
from w4afp8.measure.timing import Timer, graph_time

CHOSEN, SEVERAL = "chosen", tuned.SEVERAL
RunGemm = Callable[[GemmCall, Schedule, Tensor | None], Tensor]  # (call, schedule, where to write)
RunLayer = Callable[[MoECall], Tensor]
RunWay = Callable[
    [MoECall, layers.OneLaunch | None, Tensor | None], Tensor
]  # (call, row; None: several, where to write)


@dataclass(frozen=True, slots=True)
class Stand:
    """A device, a clock and the ops."""

    device: torch.device
    time: Timer
    ceilings: Callable[[], Machine]
    gemm: RunGemm
    layer: RunLayer  # as an engine calls it
    way: RunWay  # the same in one launch, or through its GEMMs' own launches, whose schedules `tune moe` tries
    layer_schedule: Callable[[MoECall], str | None]  # what `layer` runs, in words; None for what it does not run
    about: Mapping[str, str]


def hopper(what: str, way: str = CHOSEN) -> Stand:
    """The Hopper GPU at hand with the compiled kernels; `way` is how a layer is run.

    Raises: DeviceError naming what was found and what `what` needs; RecipeError for a way that is none.
    """
    layer = runner(way)
    require_hopper(what)
    how = partial(layer_schedule, way=way)
    return Stand(torch.device("cuda"), graph_time, ceilings.measure, _gemm, layer, _way, how, about.about())


def _gemm(call: GemmCall, schedule: Schedule, out: Tensor | None = None) -> Tensor:
    return sm90.grouped_gemm(call, schedule, out=out)


def _way(call: MoECall, row: layers.OneLaunch | None, out: Tensor | None = None) -> Tensor:
    return sm90.fused_moe(call, row or False, out)


def runner(way: str) -> RunLayer:
    """The op as an engine calls it, or `sm90.fused_moe` in several launches or by one kernel of one launch."""
    if way == CHOSEN:
        return lambda call: torch.ops.w4afp8.fused_moe(*call)
    if way == SEVERAL:
        return partial(sm90.fused_moe, one_launch=False)
    return partial(sm90.fused_moe, one_launch=_one_launch(way))


def layer_schedule(call: MoECall, way: str = CHOSEN) -> str | None:
    """The kernel of one launch, or gate_up's schedule, then down's; None when that way does not run the call."""
    layer = sm90.layer_of(call)
    if way not in (CHOSEN, SEVERAL):
        return None if _one_launch(way).cannot(layer) else f"{way}, one launch"
    row = layers.choose(layer) if way == CHOSEN else None
    if row:
        return f"{row.kernel}, one launch"
    problems = (
        Problem(layer.likely, layer.experts, w.shape[1] * TILE_ROWS, w.shape[2] * TILE_COLS)
        for w in (call.w13, call.w2)
    )
    return " ".join(spelled(choose(problem)) for problem in problems)


def _one_launch(way: str) -> layers.OneLaunch:
    known = {row.kernel: row for row in layers.ROWS}
    if way not in known:
        raise RecipeError(f"--way {way}: expected one of {', '.join((CHOSEN, SEVERAL, *known))}")
    return known[way]


def spelled(row: Schedule) -> str:
    """A schedule as tables show it: kernel/split_groups."""
    return f"{row.kernel}/{row.split_groups}"
