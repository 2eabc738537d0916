"""Problems for kernel tests: random weights in canonical bytes, and the float64 truth."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from w4afp8.kernels import ops


@dataclass
class Problem:
    """A grouped GEMM with everything an op wants, and its codes."""

    x: Tensor
    x_scale: Tensor
    codes: Tensor
    weight: Tensor
    weight_scale: Tensor
    offsets: Tensor

    def truth(self) -> Tensor:
        """The product in float64."""
        scale = self.weight_scale.double().repeat_interleave(128, dim=-1)
        x = self.x.double()
        if self.x_scale.ndim == 2:
            x = x * self.x_scale.double().repeat_interleave(128, dim=-1)
        else:
            x = x * self.x_scale.double().reshape(-1, 1)
        bounds = self.offsets.tolist()
        return torch.cat([x[a:b] @ (self.codes[e].double() * scale[e]).T for e, (a, b) in enumerate(pairwise(bounds))])


def pack(codes: Tensor) -> Tensor:
    """Canonical bytes, written here a second time on purpose: low nibble = even k, two's complement."""
    low, high = codes[..., 0::2].to(torch.int16) & 15, codes[..., 1::2].to(torch.int16) & 15
    return (low + 16 * high).to(torch.uint8).view(torch.int8)


def make(
    counts: list[int],
    rows: int,
    cols: int,
    *,
    scales: str = "token",
    scale_type: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Problem:
    """Random codes -8..7, scales and e4m3 rows for experts with the given numbers of tokens."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (len(counts), rows, cols), generator=g, dtype=torch.int8)
    weight_scale = (torch.rand(len(counts), rows, cols // 128, generator=g) * 0.01 + 0.005).to(scale_type)
    tokens = sum(counts)
    x, x_scale = ops.quantize_fp8(torch.randn(tokens, cols, generator=g, dtype=torch.bfloat16), scales)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    return Problem(x, x_scale, codes, pack(codes), weight_scale, offsets)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Relative Frobenius distance; NaN never passes."""
    return float((found.double() - truth).norm() / truth.norm())
