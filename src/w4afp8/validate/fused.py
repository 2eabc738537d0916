"""The whole layer that an engine computes: routed, multiplied, activated, re-quantized and summed by one op.

The exact side takes the same steps in float64 and rounds where the op's contract rounds: inputs and activations to
e4m3 with a scale per row, both products to bfloat16.  Letters: T tokens, H hidden, I intermediate, K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import silu

from w4afp8.formats._spec import GroupWeight
from w4afp8.numerics import fp8
from w4afp8.validate.sides import Inputs
from w4afp8.validate.weights import multiply

SCHEMES = ("W4AFP8",)  # what the op and the sm_90a kernels multiply
# A product that falls on the other side of a bfloat16 step moves an activation by up to one e4m3 step.  With a tensor
# core's short sums that is 2e-3 at DeepSeek-R1's size and about 1e-2 where K is 256 and nothing averages out;
# in plain torch it is 1e-6.  One routing weight of four 10 % off adds 5e-2, a wrong expert or matrix far more.
LAYER_ERROR = 2.5e-2
Static: TypeAlias = tuple[Tensor, Tensor]  # activation scales of gate and up, and of down: float32 [1] each


def local_ids(inputs: Inputs, batch: Sequence[int]) -> Tensor:
    """The router's choices as places in `batch`, -1 for experts outside it: int32 [T, K]."""
    place = torch.full((max(int(inputs.experts.max()), *batch) + 1,), -1, dtype=torch.int32)
    place[torch.tensor(batch)] = torch.arange(len(batch), dtype=torch.int32)
    return place.to(inputs.experts.device)[inputs.experts]


def exact_sum(
    x_TH: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Sequence[GroupWeight],
    down: Sequence[GroupWeight],
    static: Static | None = None,
) -> Tensor:
    """The weighted sum over the experts of a batch: bfloat16 [T, H] in, float64 [T, H] out."""
    first_scale, second_scale = static or (None, None)
    out = torch.zeros(x_TH.shape, dtype=torch.float64, device=x_TH.device)
    seen = _quantized(x_TH.float(), first_scale)
    for place, (first, second) in enumerate(zip(gate_up, down, strict=True)):
        token, slot = (ids_TK == place).nonzero(as_tuple=True)
        if not len(token):
            continue
        gate, up = multiply(seen[token], first).to(x_TH.dtype).float().chunk(2, dim=-1)
        product = multiply(_quantized(silu(gate) * up, second_scale), second).to(x_TH.dtype).double()
        out.index_add_(0, token, product * weights_TK[token, slot, None].double())
    return out


def _quantized(x_TK: Tensor, scale: Tensor | None) -> Tensor:
    """What the op sees of float32 `x`: e4m3 numbers, with a scale per token or the static one."""
    return fp8.round_tokens(x_TK) if scale is None else fp8.encode(x_TK / scale).float() * scale
