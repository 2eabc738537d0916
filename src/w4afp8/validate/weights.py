"""One quantized matrix beside the source's, a few rows at a time.

Pieces that fit a core's cache are several times faster than whole R1 matrices, and memory stays one matrix.
Letters: T tokens, N x K a weight, G groups along K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8.formats._spec import DoubledWeight, GroupWeight
from w4afp8.model.feedforward import pieces
from w4afp8.numerics import fp4, groups, int4

PIECE_NUMBERS = 1 << 18  # per piece: 2 MB as float64
UNFOLDED = 0.02  # fitted factors closer to 1 than this (rms) are the noise of rounding


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a quantized matrix stands to the source's."""

    error: float  # |found - source|^2 / |source|^2
    scale_misfit: float  # rms over groups of (scale that fits the codes best / stored scale - 1), weighed by energy
    farthest: tuple[int, int]  # the code that is farthest from its weight: row and column
    farthest_steps: float


def compare(weight: GroupWeight, source_NK: Tensor, row_N: Tensor | None, column_K: Tensor | None) -> Comparison:
    """Compare with the source's weights, their rows and columns multiplied as a fold did."""
    difference = size = misfit = energy = 0.0
    farthest, steps = (0, 0), -1.0
    for piece in _rows(source_NK):
        target = source_NK[piece]
        target = target if column_K is None else target * column_K
        target = target if row_N is None else target * row_N[piece, None]
        grouped = target.view(len(target), -1, weight.group_k)
        codes = weight.codes_NK[piece].view(grouped.shape).float()
        scale_NG = weight.scale_NG[piece]
        difference += _square(codes * scale_NG[..., None] - grouped)
        size += _square(grouped)
        energy_NG = codes.square().sum(-1)
        fitting_NG = (grouped * codes).sum(-1) / energy_NG.clamp_min(1)
        misfit += float(((fitting_NG / scale_NG - 1).square() * energy_NG).sum(dtype=torch.float64))
        energy += float(energy_NG.sum(dtype=torch.float64))
        off = _steps_off(grouped / scale_NG[..., None], codes, isinstance(weight, DoubledWeight))
        most = float(off.max())
        if not most <= steps:
            n, k = divmod(int(off.argmax()), target.shape[1])
            farthest, steps = (piece.start + n, k), most
    return Comparison(_ratio(difference, size), (misfit / max(energy, 1.0)) ** 0.5, farthest, steps)


def _steps_off(wanted: Tensor, codes: Tensor, doubled: bool) -> Tensor:
    """How far each code is from what it stands for, in steps of the grid there; beyond the last code is no distance."""
    if not doubled:
        return wanted.clamp_(int4.LOWEST, int4.HIGHEST).sub_(codes).abs_()
    wanted = wanted.clamp_(-2 * fp4.LARGEST, 2 * fp4.LARGEST)
    size = wanted.abs()
    step = 1.0 + (size > 4).float() + 2.0 * (size > 8).float()
    return (wanted - codes).abs_() / step


def row_factor(weight: GroupWeight, source_NK: Tensor, column_K: Tensor) -> Tensor:
    """The factor by which each row of `weight` follows the source's, columns multiplied: [N]; all 1 without a fold.

    <found, found> / <found, source>: rounding errors stand across the codes, not across the weights.  Only rows can be
    fitted: their groups are scaled with them, while a small column may have been rounded away.
    """
    factors = []
    for piece in _rows(source_NK):
        found = groups.decode(weight.codes_NK[piece], weight.scale_NG[piece], weight.group_k)
        size, along = found.square().sum(1), (found * (source_NK[piece] * column_K)).sum(1)
        factors.append(torch.where((size > 0) & (along > 0), size / along, torch.ones_like(size)))
    factor_N = torch.cat(factors)
    return torch.ones_like(factor_N) if float((factor_N - 1).square().mean().sqrt()) < UNFOLDED else factor_N


def multiply(x_TK: Tensor, weight: GroupWeight | Tensor) -> Tensor:
    """x times a weight's transpose in float64: [T, K], [N, K] -> [T, N]."""
    x_TK = x_TK.double()
    if isinstance(weight, Tensor):
        return torch.cat([x_TK @ weight[piece].double().T for piece in _rows(weight)], 1)
    products = []
    for piece in _rows(weight.codes_NK):
        scale = groups.expand(weight.scale_NG[piece].double(), weight.group_k)
        products.append(x_TK @ (weight.codes_NK[piece].double() * scale).T)
    return torch.cat(products, 1)


def relative_squared(found: Tensor, expected: Tensor) -> float:
    """|found - expected|^2 / |expected|^2; infinity when only `expected` is zero."""
    return _ratio(_square(found - expected), _square(expected))


def _rows(matrix: Tensor) -> list[slice]:
    return list(pieces(matrix.shape[0], max(1, PIECE_NUMBERS // matrix.shape[1])))


def _square(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def _ratio(difference: float, size: float) -> float:
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))
