"""SwiGLU, over rows in pieces so that the intermediate never grows with the token count."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 4 << 20  # small enough to stay in a cache, large enough for a matrix product


def intermediate(x_TH: Tensor, gate_IH: Tensor, up_IH: Tensor) -> Tensor:
    """silu(gate x) * (up x): float32 [T, H] -> [T, I]."""
    return F.silu(x_TH @ gate_IH.T).mul_(x_TH @ up_IH.T)


def swiglu(x_TH: Tensor, gate_IH: Tensor, up_IH: Tensor, down_HI: Tensor) -> Tensor:
    """down (silu(gate x) * (up x)): float32 [T, H] -> [T, H]."""
    return intermediate(x_TH, gate_IH, up_IH) @ down_HI.T


def rows_per_piece(hidden: int, width: int) -> int:
    """Rows whose input, two intermediates and output fit `PIECE_BYTES`."""
    return max(64, PIECE_BYTES // (4 * (3 * hidden + 3 * width)))


def pieces(rows: int, piece: int) -> Iterator[slice]:
    """Consecutive slices that cover `rows`."""
    for begin in range(0, rows, piece):
        yield slice(begin, min(begin + piece, rows))
