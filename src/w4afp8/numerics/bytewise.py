"""Are these the same bytes?  Compared eight at a time, because torch.equal of single bytes is much slower."""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BYTES = 8


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of any shape and dtype hold the same bytes in the same order; NaN is like itself."""
    x, y = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    if len(x) != len(y):
        return False
    whole = len(x) // WORD_BYTES * WORD_BYTES
    if any(tensor.storage_offset() % WORD_BYTES for tensor in (x, y)):
        return torch.equal(x, y)
    words = (tensor[:whole].view(torch.int64) for tensor in (x, y))
    return torch.equal(*words) and torch.equal(x[whole:], y[whole:])
