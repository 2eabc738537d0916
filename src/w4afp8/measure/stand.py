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
from w4afp8.kernels.schedules import Schedule
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
    layer: RunLayer
    about: Mapping[str, str]


def hopper(what: str) -> Stand:
    """The Hopper GPU at hand with the compiled kernels.

    Raises: DeviceError naming what was found and what `what` needs.
    """
    require_hopper(what)
    return Stand(torch.device("cuda"), graph_time, ceilings.measure, _gemm, torch_layer, about.about())


def _gemm(call: GemmCall, schedule: Schedule, out: Tensor | None = None) -> Tensor:
    return sm90.grouped_gemm(call, schedule, out=out)


def torch_layer(call: MoECall) -> Tensor:
    """The registered op, as an engine calls it."""
    found: Tensor = torch.ops.w4afp8.fused_moe(*call)
    return found
