"""Memory for tensors that come and go by the hundred, a few MB each."""

from __future__ import annotations

from math import prod

import numpy
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """As torch.empty, in memory of malloc's own alignment (16 bytes).

    glibc does not give aligned memory a freed place of just its size, and with several threads the heap grew to twice
    what was in use.
    """
    return torch.from_numpy(numpy.empty(prod(shape) * dtype.itemsize, dtype=numpy.uint8)).view(dtype).view(shape)
