"""On a GPU, thousands of small steps cost their launches, not their work: record them once, replay them.

A recorded function is called with tensors of the same shapes again and again (every expert of a model); it must not
look at values on the host.  On a CPU it is simply called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Steps = Callable[..., tuple[Tensor, ...]]


@dataclass(slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def replay(steps: Steps, *tensors: Tensor, **constants: Hashable) -> tuple[Tensor, ...]:
    """`steps(*tensors, **constants)`: recorded at its first call with these shapes on this GPU, replayed after."""
    if tensors[0].device.type != "cuda":
        return steps(*tensors, **constants)
    form = tuple((tuple(t.shape), t.dtype) for t in tensors)
    with torch.inference_mode():  # what a recording keeps must not depend on who asked for it first
        recording = _recording(steps, tensors[0].device, form, tuple(constants.items()))
        for slot, tensor in zip(recording.inputs, tensors):
            slot.copy_(tensor)
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)


@cache
def _recording(
    steps: Steps,
    device: torch.device,
    form: tuple[tuple[tuple[int, ...], torch.dtype], ...],
    constants: tuple[tuple[str, Hashable], ...],
) -> _Recording:
    inputs = tuple(torch.ones(shape, dtype=dtype, device=device) for shape, dtype in form)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        steps(*inputs, **dict(constants))  # libraries set themselves up outside the recording
    torch.cuda.current_stream(device).wait_stream(side)
    with torch.cuda.graph(graph):
        outputs = steps(*inputs, **dict(constants))
    return _Recording(graph, inputs, outputs)
