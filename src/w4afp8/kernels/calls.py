"""The arguments of the large ops, written once: what the schema names, either implementation is handed whole.

Field names, order and defaults are those of the schemas in `ops.py`; a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GemmCall(NamedTuple):
    """Rows offsets[e]..offsets[e+1] of x times expert e's weight -> [T, N].

    Shapes: x float8_e4m3fn [T, K]; x_scale float32 [1], [T] or [T, K/128]; weight [E, N, K/2] (canonical) or
    [E, N/64, K/128, 4096] (sm90) with its scales; expert_offsets int32 or int64 [E + 1], from 0 to T, never falling,
    None for one weight that takes every row.

    `weights_ready` promises that no kernel still under way writes the weight or its scales, as while a model serves:
    the GPU's kernel then loads its first weights while the launch before it still runs.  The CPU twin has no use of it.
    """

    x: Tensor
    x_scale: Tensor
    weight: Tensor
    weight_scale: Tensor
    expert_offsets: Tensor | None
    out_dtype: torch.dtype
    layout: str = "canonical"
    weights_ready: bool = False


class LinearCall(NamedTuple):
    """x [T, K] times one weight, canonical [N, K/2] or sm90 [N/64, K/128, 4096] -> [T, N]; otherwise as GemmCall."""

    x: Tensor
    x_scale: Tensor
    weight: Tensor
    weight_scale: Tensor
    out_dtype: torch.dtype
    layout: str = "canonical"
    weights_ready: bool = False

    def grouped(self) -> GemmCall:
        """The same as a grouped GEMM of one expert."""
        weight, scale = self.weight[None], self.weight_scale[None]
        return GemmCall(self.x, self.x_scale, weight, scale, None, self.out_dtype, self.layout, self.weights_ready)


class MoECall(NamedTuple):
    """The routed experts of one layer: x [T, H] -> [T, H].

    w13 is [E, 2I, H], gate rows first; w2 is [E, H, I].  Ids in `topk_ids` are global: this rank holds experts
    `expert_begin` .. `expert_begin + E - 1` and every other id adds nothing.  Without static input scales the
    activations are quantized per token.  `routed_experts`, how many experts the router chooses from over all ranks (0:
    those here), only tells the GPU's schedule how many choices to expect.
    """

    x: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    w13: Tensor
    w13_scale: Tensor
    w2: Tensor
    w2_scale: Tensor
    w13_input_scale: Tensor | None = None
    w2_input_scale: Tensor | None = None
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    routed_scaling_factor: float = 1.0
    expert_begin: int = 0
    layout: str = "canonical"
    routed_experts: int = 0
