"""The order of this program's own Hopper kernels; `kernels/layout.py` says where every bit lies and why.

A stack is what `torch.ops.w4afp8.fused_moe` takes as w13, w13_scale, w2, w2_scale with layout="sm90".
"""

from __future__ import annotations

from torch import Tensor, uint8

from w4afp8.errors import FormatError
from w4afp8.kernels.layout import TILE_BYTES, TILE_COLS, TILE_ROWS, load_codes, load_scales, store_codes, store_scales
from w4afp8.layouts._scales import cast
from w4afp8.layouts._spec import GATE_UP, Holding, Layout, Piece
from w4afp8.numerics import int4


class Codes:
    """Low-even bytes [E, N, K/2] to tiles [E, N/64, K/128, 4096] and back."""

    expert_axis = 0

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) == 3 and shape[1] % TILE_ROWS == 0 and shape[2] * 2 % TILE_COLS == 0:
            return None
        return f"sm90 stores [E, N, K/2], N a multiple of {TILE_ROWS} and K of {TILE_COLS}, found {list(shape)}"

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self._require(shape)
        return (shape[0], shape[1] // TILE_ROWS, shape[2] * 2 // TILE_COLS, TILE_BYTES)

    def store(self, logical: Tensor) -> Tensor:
        self._require(tuple(logical.shape))
        return store_codes(int4.unpack_low_first(logical))

    def load(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        self._require(shape)
        return int4.pack_low_first(load_codes(stored)).view(uint8)

    def _require(self, shape: tuple[int, ...]) -> None:
        why = self.refusal(shape)
        if why:
            raise FormatError(why)


class GroupScales:
    """[E, N, G] to [E, N/64, G, 64] and back."""

    expert_axis = 0

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) == 3 and shape[1] % TILE_ROWS == 0:
            return None
        return f"sm90 stores scales [E, N, G], N a multiple of {TILE_ROWS}, found {list(shape)}"

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        why = self.refusal(shape)
        if why:
            raise FormatError(why)
        return (shape[0], shape[1] // TILE_ROWS, shape[2], TILE_ROWS)

    def store(self, logical: Tensor) -> Tensor:
        self.stored_shape(tuple(logical.shape))
        return store_scales(logical)

    def load(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.stored_shape(shape)
        return load_scales(stored)


LAYOUT = Layout(
    name="sm90",
    version=1,
    read_by="torch.ops.w4afp8.fused_moe and grouped_gemm of this program",
    w13=GATE_UP,
    int4=tuple(Holding(Piece("", Codes(), "U8"), cast(GroupScales(), dtype, "_scale")) for dtype in ("BF16", "F32")),
    mxfp4="the kernels multiply int4 codes; e2m1 codes have no bytes here yet",
    input_scale="F32",
)
