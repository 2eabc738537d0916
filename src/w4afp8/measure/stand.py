"""What a measurement stands on: where tensors live, how calls are timed, what runs them.

`hopper` is the real one; tests put another clock on a CPU and the plain torch twins in the kernels' place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import w4afp8.kernels.ops  # noqa: F401  (registers torch.ops.w4afp8)
from w4afp8.kernels import sm90
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.device import require_hopper
from w4afp8.kernels.layout import TILE_COLS, TILE_ROWS
from w4afp8.kernels.schedules import Problem, Schedule, choose
from w4afp8.measure import about, ceilings
from w4afp8.measure.floor import Machine
from w4afp8.measure.timing import Timer, graph_time

RunGemm = Callable[[GemmCall, Schedule, Tensor | None], Tensor]  # (call, schedule, where to write)
RunLayer = Callable[[MoECall], Tensor]


@dataclass(frozen=True, slots=True)
class Stand:
    """A device, a clock and the ops."""

    device: torch.device
    time: Timer
    ceilings: Callable[[], Machine]
    gemm: RunGemm
    layer: RunLayer  # as an engine calls it
    launches: RunLayer  # the same through its GEMMs' own launches, whose schedules `tune moe` tries
    layer_schedule: Callable[[MoECall], str]  # what `layer` runs, in words
    about: Mapping[str, str]


def hopper(what: str) -> Stand:
    """The Hopper GPU at hand with the compiled kernels.

    Raises: DeviceError naming what was found and what `what` needs.
    """
    require_hopper(what)
    return Stand(
        torch.device("cuda"), graph_time, ceilings.measure, _gemm, _layer, sm90.fused_moe, layer_schedule, about.about()
    )


def _gemm(call: GemmCall, schedule: Schedule, out: Tensor | None = None) -> Tensor:
    return sm90.grouped_gemm(call, schedule, out=out)


def _layer(call: MoECall) -> Tensor:
    found: Tensor = torch.ops.w4afp8.fused_moe(*call)
    return found


def layer_schedule(call: MoECall) -> str:
    """gate_up's schedule, then down's, as `sm90.fused_moe` chooses them."""
    pairs, experts = call.topk_ids.numel(), call.w13.shape[0]
    likely = max(1, pairs * experts // max(experts, call.routed_experts))
    problems = (Problem(likely, experts, w.shape[1] * TILE_ROWS, w.shape[2] * TILE_COLS) for w in (call.w13, call.w2))
    return " ".join(spelled(choose(problem)) for problem in problems)


def spelled(row: Schedule) -> str:
    """A schedule as tables show it: kernel/split_groups."""
    return f"{row.kernel}/{row.split_groups}"
