"""Is a schedule right?  A few experts' rows against a float64 product, every other value against NaN.

Of a layer a few tokens are compared with the plain twin, which quantizes between the products as the kernels do.

Letters: T rows of x, N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8.kernels import layout, reference
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.checks import GROUP_K
from w4afp8.numerics.distance import relative_frobenius

WORST_ERROR = 2e-3  # relative Frobenius; rounding the exact product to bfloat16 costs 1.7e-3
# Of a layer: products rounded a last place apart may fall on neighbouring e4m3 steps, 1/16 of a value; where one value
# in eight does, the distance is 2.1e-2, as of the one token of R1 at M = 1, alike by every way of running it.
WORST_LAYER_ERROR = 3e-2
TOKENS = 8  # of a layer, compared with the plain twin
EXPERTS, ROWS = 6, 96  # compared with float64: so many experts, so many rows of each


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact product of some rows of one call."""

    rows: Tensor  # int64 [S]
    exact: Tensor  # float64 [S, N]

    def error(self, found: Tensor) -> float:
        """Relative Frobenius distance on the sampled rows; infinity when any value of `found` is not finite."""
        if not bool(found.isfinite().all()):
            return float("inf")
        return relative_frobenius(found[self.rows], self.exact)


def sample(call: GemmCall) -> Truth:
    """The busiest expert of a call and some spread evenly, the first and last among them; their first and last rows."""
    bounds = [0, len(call.x)] if call.expert_offsets is None else call.expert_offsets.tolist()
    reached = [e for e in range(len(bounds) - 1) if bounds[e + 1] > bounds[e]]
    busiest = max(reached, key=lambda e: bounds[e + 1] - bounds[e])
    spread = [reached[i * (len(reached) - 1) // max(1, EXPERTS - 2)] for i in range(EXPERTS - 1)]
    rows, exact = [], []
    for e in sorted({busiest, *spread}):
        mine = torch.arange(bounds[e], bounds[e + 1], device=call.x.device)
        if len(mine) > ROWS:
            mine = torch.cat((mine[: ROWS // 2], mine[-ROWS // 2 :]))
        rows.append(mine)
        exact.append(_product(call, e, mine))
    return Truth(torch.cat(rows), torch.cat(exact))


def sample_layer(call: MoECall) -> Truth:
    """Tokens spread evenly, the first and last among them, and the first and last of the busiest expert here."""
    ids, here = call.topk_ids.long() - call.expert_begin, call.w13.shape[0]
    local = ids[(ids >= 0) & (ids < here)]
    rows = {i * (len(call.x) - 1) // (TOKENS - 1) for i in range(TOKENS)}
    if len(local):
        own = (ids == local.bincount().argmax()).any(1).nonzero().flatten()
        rows |= {int(own[0]), int(own[-1])}
    tokens = torch.tensor(sorted(rows), device=call.x.device)
    part = call._replace(x=call.x[tokens], topk_ids=call.topk_ids[tokens], topk_weights=call.topk_weights[tokens])
    return Truth(tokens, reference.fused_moe(part).double())


def poisoned(call: GemmCall) -> Tensor:
    """NaN [T, N], for the kernel to write over."""
    rows = call.weight.shape[1] * layout.TILE_ROWS
    return torch.full((len(call.x), rows), float("nan"), dtype=call.out_dtype, device=call.x.device)


def poisoned_layer(call: MoECall) -> Tensor:
    """NaN [T, H]."""
    return torch.full_like(call.x, float("nan"))


def _product(call: GemmCall, expert: int, rows: Tensor) -> Tensor:
    codes_NK = layout.load_codes(call.weight[expert : expert + 1])[0]
    scale_NG = layout.load_scales(call.weight_scale[expert : expert + 1])[0].double()
    weight_NK = (codes_NK.double().view(*scale_NG.shape, GROUP_K) * scale_NG[..., None]).flatten(1)
    x = call.x.view(torch.uint8)[rows].view(call.x.dtype).double()
    x_scale = call.x_scale if call.x_scale.numel() == 1 else call.x_scale[rows]
    return (x * x_scale.double().view(-1, 1)) @ weight_NK.T
