"""Static activation scales as an engine holds them: one number per stack, the largest of the rank's experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.layouts._experts import Layer, scale_names
from w4afp8.layouts._spec import STACKS, Layout
from w4afp8.layouts._split import Split


def specs(layout: Layout, layer: Layer) -> list[TensorSpec]:
    """`{experts}.w13_input_scale` and `{experts}.w2_input_scale`, where the layout has such."""
    if layout.input_scale is None:
        return []
    return [TensorSpec(f"{layer.stem}.{stack}_input_scale", "F32", (1,)) for stack in STACKS]


def reduced(layout: Layout, layer: Layer, split: Split, ep_rank: int, read: Callable[[str], Tensor]) -> list[Tensor]:
    """Their values on one rank, float32 [1] each.

    Agrees with: SGLang 0.5.23, which rounds every scale to bfloat16 and takes the largest of its local experts.
    """
    found = []
    for projections in STACKS.values():
        names = [scale_names(layer, expert)[p] for expert in split.experts(ep_rank) for p in projections]
        every = torch.cat([read(name).reshape(1).float() for name in names])
        found.append((every.bfloat16().float() if layout.input_scale == "BF16" else every).amax().reshape(1))
    return found
