"""The `sm90` layout: where each 4-bit code and each group scale lies in the bytes the Hopper kernels read.

A tile is 64 output rows x 128 inputs, 4096 contiguous bytes, in the order in which the 128 threads of a warpgroup
hold the A operand of `wgmma.m64nNk32` in registers: thread (warp, row8, quad) owns one 16-byte piece in each half of
the tile, and every 32-bit word of a piece becomes two registers with two masks.  Tiles of a row block follow each
other along K, so a pipeline stage is one contiguous copy.

Letters: E experts, n = (row_block warp half row8), k = (col_block piece step c16 quad byte).  The two nibbles of a
byte are half 0 and half 1: rows r and r + 8 of one warp's sixteen.

Inside a 32-bit word the codes share the bits so that both halves unpack with one mask, `0x87` in every byte, half 1
after a rotation of the word by four: bit 7 and bits 2..0 of a byte hold half 0; bits 6..4 hold the low bits of half
1, whose sign is bit 3 of the *next* byte of the word (the rotation carries it to bit 7 of its own byte).  A code is
stored as its sign s and, in three bits, its value xor -s (one's complement): adding s to the byte gives sign and
magnitude, which is the e4m3 number code * 2^-9 for every code -8..7.
"""

from __future__ import annotations

from torch import Tensor, int8, stack, uint8

from w4afp8.numerics.axes import backwards, rearrange

TILE_ROWS = 64
TILE_COLS = 128
TILE_BYTES = TILE_ROWS * TILE_COLS // 2

# "logical axes -> stored axes"; read backwards it is the inverse.
CODES = (
    "e (row_block warp half row8) (col_block piece step c16 quad byte) -> "
    "e row_block col_block (piece warp row8 quad step c16 byte) half"
)
SCALES = "e (row_block warp half row8) col_block -> e row_block col_block (warp row8 half)"
SIZES = {"warp": 4, "half": 2, "row8": 8, "piece": 2, "step": 2, "c16": 2, "quad": 4, "byte": 4}


def store_codes(codes_ENK: Tensor) -> Tensor:
    """Codes to sm90 bytes.

    Shapes: int8 [E, N, K] -> uint8 [E, N/64, K/128, 4096]; N a multiple of 64, K of 128.
    Range:  codes in -8..7; the caller has checked.
    """
    pairs = rearrange(codes_ENK, CODES, SIZES)
    sign = (pairs < 0).to(uint8)
    low = (pairs ^ -sign.to(int8)).to(uint8)
    sign_0, low_0, sign_1, low_1 = sign[..., 0], low[..., 0], sign[..., 1], low[..., 1]
    sign_1 = sign_1.contiguous().view(-1, 4).roll(1, -1).view(sign_1.shape)
    return sign_0 << 7 | low_1 << 4 | sign_1 << 3 | low_0


def load_codes(bytes_ERCB: Tensor) -> Tensor:
    """The inverse of `store_codes`: uint8 [E, N/64, K/128, 4096] -> int8 [E, N, K]."""
    raw = bytes_ERCB.view(uint8)
    sign_1 = (raw >> 3 & 1).view(-1, 4).roll(-1, -1).view(raw.shape)
    sign = stack((raw >> 7, sign_1), -1).to(int8)
    low = stack((raw & 7, raw >> 4 & 7), -1).to(int8)
    return rearrange(low ^ -sign, backwards(CODES), SIZES)


def store_scales(scale_ENG: Tensor) -> Tensor:
    """[E, N, G] -> [E, N/64, G, 64]: the 64 scales of a tile together, rows r and r + 8 side by side."""
    return rearrange(scale_ENG, SCALES, SIZES)


def load_scales(scale_ERG64: Tensor) -> Tensor:
    """The inverse of `store_scales`."""
    return rearrange(scale_ERG64, backwards(SCALES), SIZES)
