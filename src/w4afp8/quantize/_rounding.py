"""Codes chosen together: what rounding one weight breaks, the next ones repair.

Letters: N rows, K columns, G groups of 128.  Rows are independent, so everything is vectorised over them; columns are
walked in natural order, which keeps the groups contiguous for every kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.numerics import groups
from w4afp8.numerics.int4 import HIGHEST, LOWEST
from w4afp8.quantize import _scales

BLOCK = groups.GROUP


def feedback(weight_NK: Tensor, gram_KK: Tensor, candidates: list[float] = _scales.CANDIDATES) -> tuple[Tensor, Tensor]:
    """GPTQ: round column by column, each error pushed onto the columns that follow; scales searched at each group.

    Shapes: float32 [N, K], damped [K, K] -> int8 [N, K], float32 [N, G].
    Agrees with: GPTQ (arXiv 2210.17323), Cholesky form, natural order.
    """
    n, k = weight_NK.shape
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram_KK))
    upper_KK = torch.linalg.cholesky(inverse, upper=True)
    rest_NK = weight_NK.clone()
    codes_NK = torch.empty(n, k, dtype=torch.int8, device=weight_NK.device)
    scale_NG = torch.empty(n, groups.count(k), device=weight_NK.device)
    for g in range(scale_NG.shape[1]):
        span = slice(g * BLOCK, (g + 1) * BLOCK)
        upper = upper_KK[span, span]
        columns = rest_NK[:, span].T.contiguous()  # [128, N]: a column is contiguous
        # Under feedback the group's own error counts with 1 / diag(U)^2 per column.
        importance = torch.diag(upper.diagonal().reciprocal().square())
        scale = _scales.search(columns.T.contiguous(), importance, candidates)[:, 0]
        errors = torch.empty_like(columns)
        for j in range(BLOCK):
            code = (columns[j] / scale).round_().clamp_(LOWEST, HIGHEST)
            codes_NK[:, g * BLOCK + j] = code.to(torch.int8)
            errors[j] = (columns[j] - code * scale) / upper[j, j]
            columns[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
        rest_NK[:, span.stop :] -= errors.T @ upper_KK[span, span.stop :]
        scale_NG[:, g] = scale
    return codes_NK, scale_NG


def descend(
    weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, sweeps: int
) -> Tensor:
    """Coordinate descent on the codes under the whole Gram: every code in turn goes to its best value given the rest.

    The error never grows.  Shapes as in `feedback`; returns new codes.
    """
    n, k = weight_NK.shape
    codes_KN = codes_NK.T.float().contiguous()
    scale_GN = scale_NG.T.contiguous()
    residual_KN = (gram_KK @ (groups.decode(codes_NK, scale_NG) - weight_NK).T).contiguous()
    diagonal = gram_KK.diagonal()
    for _ in range(sweeps):
        changed = 0
        for g in range(len(scale_GN)):
            span = slice(g * BLOCK, (g + 1) * BLOCK)
            scale, block = scale_GN[g], gram_KK[span, span]
            inner = residual_KN[span].clone()
            steps = torch.zeros_like(inner)
            for j in range(BLOCK):
                row = g * BLOCK + j
                best = (codes_KN[row] - inner[j] / (diagonal[row] * scale)).round_().clamp_(LOWEST, HIGHEST)
                step = (best - codes_KN[row]).mul_(scale)
                codes_KN[row] = best
                steps[j] = step
                inner.addr_(block[:, j], step)
            residual_KN += gram_KK[:, span] @ steps
            changed += int(torch.count_nonzero(steps))
        if changed == 0:
            break
    return codes_KN.T.to(torch.int8).contiguous()


def refine(
    weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, rounds: int, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Alternate descent on codes with least-squares scales, `rounds` times, and end on codes."""
    for _ in range(rounds):
        codes_NK = descend(weight_NK, gram_KK, codes_NK, scale_NG, sweeps)
        scale_NG = _scales.refit(weight_NK, gram_KK, codes_NK, scale_NG)
    return descend(weight_NK, gram_KK, codes_NK, scale_NG, sweeps), scale_NG
