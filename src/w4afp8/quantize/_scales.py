"""Group scales chosen by the output error that they cause.

Letters: N rows, K columns, G groups, g inputs of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.numerics import groups
from w4afp8.quantize._gram import TINY
from w4afp8.quantize._grid import INT4, Grid


def search(weight_NK: Tensor, gram_KK: Tensor, grid: Grid = INT4, coarse: bool = False) -> Tensor:
    """For every group the scale with the least error under its own g x g block of the Gram.

    Shapes: float32 [N, K], [K, K] -> float32 [N, G], positive, also for an all-zero group.
    """
    n, k = weight_NK.shape
    grouped = weight_NK.view(n, groups.count(k, grid.group), grid.group).transpose(0, 1)  # [G, N, g]
    blocks = torch.stack([gram_KK[b : b + grid.group, b : b + grid.group] for b in range(0, k, grid.group)])
    amax_GN = grouped.abs().amax(-1)
    best_GN = torch.full_like(amax_GN, float("inf"))
    chosen_GN = grid.plain(amax_GN)
    for scale_GN in grid.candidates(amax_GN, coarse):
        error = grid.snap_(grouped / scale_GN[..., None]).mul_(scale_GN[..., None]).sub_(grouped)
        cost_GN = torch.bmm(error, blocks).mul_(error).sum(-1)
        better = cost_GN < best_GN
        best_GN = torch.where(better, cost_GN, best_GN)
        chosen_GN = torch.where(better, scale_GN, chosen_GN)
    return chosen_GN.T.contiguous()


def search_columns(columns_KN: Tensor, importance_K: Tensor, grid: Grid = INT4) -> Tensor:
    """The scale of one group that has the least weighted squared error.

    Shapes: float32 [g, N] (transposed), float32 [g] -> float32 [N].
    """
    amax_N = columns_KN.abs().amax(0)
    best_N = torch.full_like(amax_N, float("inf"))
    chosen_N = grid.plain(amax_N)
    for scale_N in grid.candidates(amax_N):
        error = grid.snap_(columns_KN / scale_N).mul_(scale_N).sub_(columns_KN)
        cost_N = importance_K @ error.square_()
        better = cost_N < best_N
        best_N = torch.where(better, cost_N, best_N)
        chosen_N = torch.where(better, scale_N, chosen_N)
    return chosen_N


def refit(weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, grid: Grid = INT4) -> Tensor:
    """Least-squares scales for fixed codes, one group after the other, kept only where a storable scale still gains.

    Minimises trace(E G E^T) over the scale of each row and group given all the others.
    """
    scale_NG = scale_NG.clone()
    residual_NK = (groups.decode(codes_NK, scale_NG, grid.group) - weight_NK) @ gram_KK
    for g in range(scale_NG.shape[1]):
        span = slice(g * grid.group, (g + 1) * grid.group)
        codes = codes_NK[:, span].float()
        slope = (residual_NK[:, span] * codes).sum(-1)
        curve = ((codes @ gram_KK[span, span]) * codes).sum(-1)
        wanted = scale_NG[:, g] - slope / curve.clamp_min(TINY)
        step = torch.where(wanted > 0, grid.nearest_scale(wanted.clamp_min(TINY)), scale_NG[:, g]) - scale_NG[:, g]
        step = torch.where(2 * step * slope + step.square() * curve < 0, step, torch.zeros_like(step))
        scale_NG[:, g] += step
        residual_NK += (step[:, None] * codes) @ gram_KK[span]
    return scale_NG
