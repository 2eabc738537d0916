"""Group scales chosen by the output error that they cause.  Letters: N rows, K columns, G groups of 128."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.numerics import groups
from w4afp8.numerics.int4 import HIGHEST, LOWEST

# Candidates as multiples of amax/7.  Below 0.5 the clipping always costs more than the finer grid saves.
CANDIDATES = torch.linspace(0.5, 1.15, 27).tolist()


def search(weight_NK: Tensor, gram_KK: Tensor, candidates: list[float] = CANDIDATES) -> Tensor:
    """For every group the bf16 scale with the least error under its own 128 x 128 block of the Gram.

    Shapes: float32 [N, K], [K, K] -> float32 [N, G], positive; 1 for an all-zero group.
    """
    n, k = weight_NK.shape
    count = groups.count(k)
    grouped = weight_NK.view(n, count, groups.GROUP).transpose(0, 1)  # [G, N, 128]
    blocks = torch.stack([gram_KK[b : b + groups.GROUP, b : b + groups.GROUP] for b in range(0, k, groups.GROUP)])
    base_GN = grouped.abs().amax(-1) / 7
    best_GN = torch.full_like(base_GN, float("inf"))
    chosen_GN = groups.usable(groups.round_to_bf16(base_GN))
    for ratio in candidates:
        scale_GN = groups.usable(groups.round_to_bf16(base_GN * ratio))
        error = (grouped / scale_GN[..., None]).round_().clamp_(LOWEST, HIGHEST).mul_(scale_GN[..., None]).sub_(grouped)
        cost_GN = torch.bmm(error, blocks).mul_(error).sum(-1)
        better = cost_GN < best_GN
        best_GN = torch.where(better, cost_GN, best_GN)
        chosen_GN = torch.where(better, scale_GN, chosen_GN)
    return chosen_GN.T.contiguous()


def search_columns(columns_KN: Tensor, importance_K: Tensor) -> Tensor:
    """The bf16 scale of one group that has the least weighted squared error.

    Shapes: float32 [128, N] (transposed), float32 [128] -> float32 [N].
    """
    base_N = columns_KN.abs().amax(0) / 7
    best_N = torch.full_like(base_N, float("inf"))
    chosen_N = groups.usable(groups.round_to_bf16(base_N))
    for ratio in CANDIDATES:
        scale_N = groups.usable(groups.round_to_bf16(base_N * ratio))
        error = (columns_KN / scale_N).round_().clamp_(LOWEST, HIGHEST).mul_(scale_N).sub_(columns_KN)
        cost_N = importance_K @ error.square_()
        better = cost_N < best_N
        best_N = torch.where(better, cost_N, best_N)
        chosen_N = torch.where(better, scale_N, chosen_N)
    return chosen_N


def refit(weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor) -> Tensor:
    """Least-squares scales for fixed codes, one group after the other, kept only where bf16 still gains.

    Minimises trace(E G E^T) over the scale of each row and group given all the others.
    """
    scale_NG = scale_NG.clone()
    residual_NK = (groups.decode(codes_NK, scale_NG) - weight_NK) @ gram_KK
    for g in range(scale_NG.shape[1]):
        span = slice(g * groups.GROUP, (g + 1) * groups.GROUP)
        codes = codes_NK[:, span].float()
        slope = (residual_NK[:, span] * codes).sum(-1)
        curve = ((codes @ gram_KK[span, span]) * codes).sum(-1)
        wanted = scale_NG[:, g] - slope / curve.clamp_min(torch.finfo(torch.float32).tiny)
        step = torch.where(wanted > 0, groups.round_to_bf16(wanted), scale_NG[:, g]) - scale_NG[:, g]
        step = torch.where(2 * step * slope + step.square() * curve < 0, step, torch.zeros_like(step))
        scale_NG[:, g] += step
        residual_NK += (step[:, None] * codes) @ gram_KK[span]
    return scale_NG
