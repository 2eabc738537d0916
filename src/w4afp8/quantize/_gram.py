"""Statistics of an expert's inputs, small enough to forget the inputs themselves.

For a weight error E the mean output error is E|E x|^2 = trace(E G E^T) with G = E[x x^T]: one K x K matrix answers
every question about scales, folds and rounding (docs/numerics.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def gram(x_nK: Tensor, weight_n: Tensor | None = None) -> Tensor:
    """Mean of x x^T over the rows, each weighted by the square of its router weight: float32 [n, K] -> [K, K].

    The square is how an expert's error enters the layer's output (MoEQuant, arXiv 2505.03804).
    """
    if weight_n is None:
        return (x_nK.T @ x_nK).div_(max(len(x_nK), 1))
    share = weight_n.square()
    return ((x_nK * share[:, None]).T @ x_nK).div_(share.sum().clamp_min(TINY))


def effective_tokens(weight_n: Tensor) -> float:
    """How many equally weighted tokens know as much as these: (sum g^2)^2 / sum g^4."""
    share = weight_n.square()
    return float(share.sum().square() / share.square().sum().clamp_min(TINY))


def shrink(gram_KK: Tensor, prior_KK: Tensor, kept: float) -> Tensor:
    """Mix with a prior brought to the same trace; `kept` is the share that stays.

    A Gram of fewer tokens than columns has directions that cost nothing, and rounding with feedback would hide all its
    error there (measured: docs/numerics.md).
    """
    size = gram_KK.diagonal().sum() / prior_KK.diagonal().sum().clamp_min(TINY)
    return gram_KK * kept + prior_KK * ((1 - kept) * size)


def damp(gram_KK: Tensor, share: float) -> Tensor:
    """Add `share` of the mean diagonal to the diagonal, in place; an all-zero Gram becomes the identity."""
    diagonal = gram_KK.diagonal()
    mean = diagonal.mean()
    diagonal.add_(torch.where(mean > 0, share * mean, torch.ones_like(mean)))
    return gram_KK
