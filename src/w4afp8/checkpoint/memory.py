"""Memory for tensors that come and go by the hundred, a few MB each."""

from __future__ import annotations

from math import prod

import numpy
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """As torch.empty, in memory of malloc's own alignment (16 bytes).

    With torch.empty, whose memory is aligned to 64 bytes, the way back from a layout peaked at twice as much with two
    jobs; why was not proven.
    """
    return torch.from_numpy(numpy.empty(prod(shape) * dtype.itemsize, dtype=numpy.uint8)).view(dtype).view(shape)
