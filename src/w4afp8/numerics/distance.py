"""Every error number this program prints, defined once.

Letters: T tokens, V vocabulary, N output rows, K input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_frobenius(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; 0 when both are zero, infinity when only `expected` is."""
    difference = float(torch.linalg.vector_norm((found.double() - expected.double()).flatten()))
    size = float(torch.linalg.vector_norm(expected.double().flatten()))
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def gram_error(error_NK: Tensor, gram_KK: Tensor) -> float:
    """Mean output error E|error x|^2 = trace(error G error^T), with G = E[x x^T] (docs/numerics.md)."""
    return torch.einsum("nk,nk->", error_NK @ gram_KK, error_NK).item()


def kl_divergence(source_logits_TV: Tensor, other_logits_TV: Tensor) -> Tensor:
    """KL(source || other) of each token's next-token distribution, in nats: [T, V] twice -> float32 [T]."""
    source = torch.log_softmax(source_logits_TV.float(), -1)
    other = torch.log_softmax(other_logits_TV.float(), -1)
    return (source.exp() * (source - other)).sum(-1)


def negative_log_likelihood(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """-log p(target) of each token, in nats: [T, V], int64 [T] -> float32 [T]."""
    return torch.nn.functional.cross_entropy(logits_TV.float(), target_T, reduction="none")
