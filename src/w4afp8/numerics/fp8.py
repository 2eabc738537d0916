"""FP8 e4m3 (the `fn` variant: no infinities, NaN is 0x7F and 0xFF, largest 448).

Letters: T tokens, N output rows, K input columns, R x C the grid of 128 x 128 blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
BLOCK = 128
SMALLEST_SCALE = 1e-10  # SGLang 0.5.23's floor for dynamic scales: keeps an all-zero token finite


def encode(real: Tensor) -> Tensor:
    """Round to the nearest e4m3, ties to even, saturating at +-448.

    Clamped before the cast: torch 2.9 gives NaN above 464 where 2.13 saturates.
    """
    return real.clamp(-LARGEST, LARGEST).to(E4M3)


def round_tokens(x_TK: Tensor) -> Tensor:
    """What a per-token FP8 consumer sees of `x`: encode with scale amax/448 per row, and decode.

    Shapes: float [T, K] -> same shape and dtype.
    """
    scale_T1 = x_TK.abs().amax(-1, keepdim=True).float().clamp_min(SMALLEST_SCALE) / LARGEST
    return (encode(x_TK.float() / scale_T1).float() * scale_T1).to(x_TK.dtype)


def round_static(x_TK: Tensor, input_scale: float) -> Tensor:
    """What a static per-tensor FP8 consumer sees of `x`: multiplied by 1/scale in fp32, as SGLang's kernel does."""
    reciprocal = torch.tensor(1.0) / torch.tensor(input_scale, dtype=torch.float32)
    return (encode(x_TK.float() * reciprocal.to(x_TK.device)).float() * input_scale).to(x_TK.dtype)


def block_grid(n: int, k: int) -> tuple[int, int]:
    """Blocks of 128 x 128 that cover [n, k]; ragged edges count as whole blocks."""
    return -(-n // BLOCK), -(-k // BLOCK)


def expand_blocks(scale_RC: Tensor, n: int, k: int) -> Tensor:
    """One scale per element: [R, C] -> [n, k], the last row and column of blocks cropped."""
    return scale_RC.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]


def decode_blocks(codes_NK: Tensor, scale_RC: Tensor) -> Tensor:
    """Multiply every e4m3 code by its block's scale.

    Shapes: e4m3 [N, K], float32 [ceil(N/128), ceil(K/128)] -> float32 [N, K].
    Agrees with: DeepSeek-V3's weight_dequant (W = code * scale_inv; the name says inverse, it is the multiplier).
    """
    n, k = codes_NK.shape
    if tuple(scale_RC.shape) != block_grid(n, k):
        raise QuantizationError(
            f"block scales are {list(scale_RC.shape)}, expected {list(block_grid(n, k))} for [{n}, {k}]"
        )
    real_NK = codes_NK.to(torch.float32)
    if k % BLOCK == 0:  # the usual case, in place: no second [N, K] tensor
        for row in range(scale_RC.shape[0]):
            rows = real_NK[row * BLOCK : (row + 1) * BLOCK]
            rows.view(rows.shape[0], -1, BLOCK).mul_(scale_RC[row, None, :, None].to(torch.float32))
        return real_NK
    return real_NK.mul_(expand_blocks(scale_RC.to(torch.float32), n, k))


def encode_blocks(real_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each 128 x 128 block by amax/448 and round; an all-zero block gets scale 1.

    Shapes: float32 [N, K] -> e4m3 [N, K], float32 [ceil(N/128), ceil(K/128)].
    Agrees with: transformers 5.23 `Fp8Quantize` up to its second rounding of the reciprocal.
    """
    n, k = real_NK.shape
    amax_RC = block_amax(real_NK)
    scale_RC = torch.where(amax_RC > 0, amax_RC / LARGEST, torch.ones_like(amax_RC))
    return encode(real_NK / expand_blocks(scale_RC, n, k)), scale_RC


def block_amax(real_NK: Tensor) -> Tensor:
    """Largest magnitude of each 128 x 128 block: [N, K] -> [ceil(N/128), ceil(K/128)]."""
    n, k = real_NK.shape
    rows, columns = block_grid(n, k)
    padded = torch.nn.functional.pad(real_NK, (0, columns * BLOCK - k, 0, rows * BLOCK - n))
    return padded.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3))
