"""Codes chosen together: what rounding one weight breaks, the next ones repair.

Letters: N rows, K columns, G groups.  Rows are independent, so everything is vectorised over them; columns are
walked in natural order, which keeps the groups contiguous for every kernel.  Inside, matrices stand transposed: the
column in hand is then contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.numerics import groups
from w4afp8.quantize import _scales
from w4afp8.quantize._graphs import replay
from w4afp8.quantize._grid import INT4, Grid

# Columns whose errors are exchanged one by one; beyond them, by matrix products.  Divides a group.
STRIP = 32


def feedback(weight_NK: Tensor, gram_KK: Tensor, grid: Grid = INT4) -> tuple[Tensor, Tensor]:
    """GPTQ: round column by column, each error pushed onto the columns that follow; scales searched at each group.

    Shapes: float32 [N, K], damped [K, K] -> int8 [N, K], float32 [N, G].
    Agrees with: GPTQ (arXiv 2210.17323), Cholesky form, natural order.
    """
    codes_NK, scale_NG = replay(_walk, weight_NK, _feedback_factor(gram_KK), grid=grid)
    return codes_NK, scale_NG


def _walk(weight_NK: Tensor, upper_KK: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    rest_KN = weight_NK.T.contiguous()
    k, n = rest_KN.shape
    codes_KN = torch.empty_like(rest_KN)
    scale_GN = torch.empty(groups.count(k, grid.group), n, device=weight_NK.device)
    for g in range(len(scale_GN)):
        begin, end = g * grid.group, (g + 1) * grid.group
        columns, upper = rest_KN[begin:end], upper_KK[begin:end, begin:end]
        # Once later columns compensate, a column's own error counts with 1 / U_jj^2.
        scale = _scales.search_columns(columns, upper.diagonal().square().reciprocal(), grid)
        errors = torch.empty_like(columns)
        for strip in range(0, grid.group, STRIP):
            stop = strip + STRIP
            for j in range(strip, stop):
                code = grid.snap_(columns[j] / scale)
                codes_KN[begin + j] = code
                torch.div(columns[j] - code * scale, upper[j, j], out=errors[j])
                columns[j + 1 : stop].addr_(upper[j, j + 1 : stop], errors[j], alpha=-1)
            columns[stop:] -= upper[strip:stop, stop:].T @ errors[strip:stop]
        rest_KN[end:] -= upper_KK[begin:end, end:].T @ errors
        scale_GN[g] = scale
    return codes_KN.T.to(torch.int8).contiguous(), scale_GN.T.contiguous()


def _feedback_factor(gram_KK: Tensor) -> Tensor:
    """Upper U with G^-1 = U^T U: one Cholesky of the matrix read backwards, one triangular inverse."""
    backwards = torch.linalg.cholesky(gram_KK.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(gram_KK), device=gram_KK.device, dtype=gram_KK.dtype)
    factor: Tensor = torch.linalg.solve_triangular(backwards, identity, upper=True)
    return factor


def descend(
    weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, sweeps: int, grid: Grid = INT4
) -> Tensor:
    """Coordinate descent on the codes under the whole Gram: every code in turn goes to its best value given the rest.

    trace(E G E^T) never grows.  Shapes as in `feedback`; returns new codes.
    """
    codes_KN = codes_NK.T.float().contiguous()
    scale_GN = scale_NG.T.contiguous()
    residual_KN = gram_KK @ (groups.decode(codes_NK, scale_NG, grid.group) - weight_NK).T
    diagonal_K = gram_KK.diagonal()
    for _ in range(sweeps):
        for begin in range(0, len(codes_KN), STRIP):
            strip = slice(begin, begin + STRIP)
            scale, block = scale_GN[begin // grid.group], gram_KK[strip, strip]
            inner = residual_KN[strip].clone()
            steps = torch.empty_like(inner)
            per_code = 1 / (diagonal_K[strip, None] * scale)
            for j in range(STRIP):
                now = codes_KN[begin + j]
                best = grid.snap_(torch.addcmul(now, inner[j], per_code[j], value=-1))
                torch.sub(best, now, out=steps[j]).mul_(scale)
                codes_KN[begin + j] = best
                inner[j + 1 :].addr_(block[j, j + 1 :], steps[j])
            residual_KN.addmm_(gram_KK[:, strip], steps)
    return codes_KN.T.to(torch.int8).contiguous()


def refine(
    weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, rounds: int, sweeps: int, grid: Grid = INT4
) -> tuple[Tensor, Tensor]:
    """Alternate descent on codes with least-squares scales, `rounds` times, and end on codes."""
    codes_NK, scale_NG = replay(
        _refine, weight_NK, gram_KK, codes_NK, scale_NG, rounds=rounds, sweeps=sweeps, grid=grid
    )
    return codes_NK, scale_NG


def _refine(
    weight_NK: Tensor, gram_KK: Tensor, codes_NK: Tensor, scale_NG: Tensor, rounds: int, sweeps: int, grid: Grid
) -> tuple[Tensor, Tensor]:
    for _ in range(rounds):
        codes_NK = descend(weight_NK, gram_KK, codes_NK, scale_NG, sweeps, grid)
        scale_NG = _scales.refit(weight_NK, gram_KK, codes_NK, scale_NG, grid)
    return descend(weight_NK, gram_KK, codes_NK, scale_NG, sweeps, grid), scale_NG
