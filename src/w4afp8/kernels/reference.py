"""The kernels' twins in plain torch: slow, obvious, and the truth that the CUDA kernels are held to.

They run wherever torch runs.  Every product is taken in float32 from exact operands: a code times a bfloat16 scale
and an e4m3 number both fit float32, so the only rounding is that of the sum.

Letters: T tokens, K inputs, N outputs, G = K/128 groups, E experts, H hidden.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from w4afp8.kernels import layout as sm90
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.checks import FP8, GROUP_K, offset_values

FP8_MAX = 448.0
SMALLEST_AMAX = 1e-10  # below it a row is all zeros for every purpose; keeps the scale from being zero
ROWS_AT_ONCE = 2048  # of a weight: bounds the dequantized copy to a few MB


def quantize_fp8(x: Tensor, mode: str, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale to e4m3's range, clamp, cast (nearest even): real = q * scale.

    Shapes: [T, K] -> float8_e4m3fn [T, K] and float32 [T] (token), [1] (tensor) or [T, K/128] (group128).
    """
    x32 = x.float()
    if mode == "group128":
        groups = x32.reshape(len(x), x.shape[1] // GROUP_K, GROUP_K)
        scale = _scale(groups.abs().amax(-1))
        return _cast(groups / scale.unsqueeze(-1)).flatten(1), scale
    if mode == "token":
        scale = _scale(x32.abs().amax(-1))
        return _cast(x32 / scale.unsqueeze(-1)), scale
    if scale is None:
        scale = _scale(x32.abs().amax() if x.numel() else x32.new_zeros(()))
    scale = scale.reshape(1).clone()
    return _cast(x32 / scale), scale


def _scale(amax: Tensor) -> Tensor:
    return amax.clamp_min(SMALLEST_AMAX) / FP8_MAX


def _cast(x: Tensor) -> Tensor:
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)  # torch before 2.11 casts what exceeds 448 to NaN


def unpack_codes(weight_NK2: Tensor) -> Tensor:
    """Canonical bytes to codes: int8 [..., K/2] -> int8 [..., K]; low nibble first, two's complement."""
    raw = weight_NK2.view(torch.int8)
    return torch.stack((raw << 4 >> 4, raw >> 4), dim=-1).flatten(-2)


def pack_codes(codes_NK: Tensor) -> Tensor:
    """The inverse of `unpack_codes`."""
    return (codes_NK[..., 1::2] << 4) | (codes_NK[..., 0::2] & 0xF)


def prepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical bytes and scales to the sm90 layout, expert by expert."""
    experts, rows, half_cols = weight.shape
    packed = weight.new_empty(
        (experts, rows // sm90.TILE_ROWS, half_cols * 2 // sm90.TILE_COLS, sm90.TILE_BYTES), dtype=torch.uint8
    )
    for e in range(experts):
        packed[e] = sm90.store_codes(unpack_codes(weight[e : e + 1]))[0]
    return packed, sm90.store_scales(weight_scale).contiguous()


def unprepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `prepack`."""
    experts, row_blocks, col_blocks, _ = weight.shape
    canonical = weight.new_empty(
        (experts, row_blocks * sm90.TILE_ROWS, col_blocks * sm90.TILE_COLS // 2), dtype=torch.int8
    )
    for e in range(experts):
        canonical[e] = pack_codes(sm90.load_codes(weight[e : e + 1])[0])
    return canonical, sm90.load_scales(weight_scale).contiguous()


def dequantize(weight: Tensor, weight_scale: Tensor, layout: str) -> Tensor:
    """One expert's bytes to float32 [N, K] (or a slice of whole row blocks of it)."""
    if layout == "sm90":
        codes, scale = sm90.load_codes(weight[None])[0], sm90.load_scales(weight_scale[None])[0]
    else:
        codes, scale = unpack_codes(weight), weight_scale
    groups = codes.float().reshape(*scale.shape, GROUP_K)
    return groups.mul_(scale.float().unsqueeze(-1)).flatten(-2)


def grouped_gemm(call: GemmCall) -> Tensor:
    """out[t, n] = x_scale * sum_k x[t, k] * code[e, n, k] * weight_scale[e, n, k/128] for t in expert e's rows.

    One slice of one expert is dequantized at a time.  Raises: KernelError for offsets that fall or miss a row.
    """
    x, x_scale, weight, weight_scale, expert_offsets, out_dtype, layout, _ = call
    offsets = [0, len(x)] if expert_offsets is None else offset_values(expert_offsets, len(x))
    rows_a_block = 1 if layout == "canonical" else sm90.TILE_ROWS
    step = ROWS_AT_ONCE // rows_a_block
    blocks = weight.shape[1]
    out = x_scale.new_empty((x.shape[0], blocks * rows_a_block), dtype=out_dtype)
    for e, (begin, end) in enumerate(pairwise(offsets)):
        if begin == end:
            continue
        x_TK = _scaled(x[begin:end], x_scale if x_scale.numel() == 1 else x_scale[begin:end])
        for first in range(0, blocks, step):
            rows = slice(first, min(first + step, blocks))
            w_NK = dequantize(weight[e, rows], weight_scale[e, rows], layout)
            out[begin:end, rows.start * rows_a_block : rows.stop * rows_a_block] = (x_TK @ w_NK.T).to(out_dtype)
    return out


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    if scale.ndim == 2:
        return (x.float().reshape(*scale.shape, GROUP_K) * scale.unsqueeze(-1)).flatten(1)
    return x.float() * scale.reshape(-1, 1)


def swiglu(gate_up: Tensor, limit: float | None, alpha: float, beta: float) -> Tensor:
    """gate * sigmoid(alpha * gate) * (up + beta), gate clamped from above and up on both sides when limited.

    Shapes: [T, 2I], gate first -> float32 [T, I].
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def sort_by_expert(topk_ids: Tensor, expert_begin: int, experts: int) -> tuple[Tensor, Tensor]:
    """Which (token, choice) pairs belong to the local experts, in expert order, and where each expert begins.

    Shapes: [T, top_k] -> int64 [R] positions in the flattened ids, int64 [E + 1] offsets; ids outside the local range
    (another rank's, or -1) are left out.
    """
    local = topk_ids.flatten().long() - expert_begin
    local = torch.where((local >= 0) & (local < experts), local, experts)
    order = torch.argsort(local, stable=True)
    offsets = torch.zeros(experts + 1, dtype=torch.int64, device=topk_ids.device)
    offsets[1:] = torch.bincount(local, minlength=experts + 1)[:experts].cumsum(0)
    return order[: int(offsets[-1])], offsets


def fused_moe(call: MoECall) -> Tensor:
    """The routed experts of one layer: quantize, gather, gate_up, SwiGLU, quantize, down, weighted sum.

    The gate_up and down products are rounded to x's type, as the GPU kernels round them; the sum over a token's
    experts is taken in float32, in the order of its choices, and scaled by `routed_scaling_factor` once at the end.
    """
    x, ids, layout = call.x, call.topk_ids, call.layout
    order, offsets = sort_by_expert(ids, call.expert_begin, call.w13.shape[0])
    q, scale = quantize_fp8(x, "token" if call.w13_input_scale is None else "tensor", call.w13_input_scale)
    tokens = order // ids.shape[1]
    rows, rows_scale = q.view(torch.uint8)[tokens].view(FP8), scale if len(scale) == 1 else scale[tokens]
    gate_up = grouped_gemm(GemmCall(rows, rows_scale, call.w13, call.w13_scale, offsets, x.dtype, layout))
    hidden = swiglu(gate_up, call.swiglu_limit, call.swiglu_alpha, call.swiglu_beta)
    q, scale = quantize_fp8(hidden, "token" if call.w2_input_scale is None else "tensor", call.w2_input_scale)
    down = grouped_gemm(GemmCall(q, scale, call.w2, call.w2_scale, offsets, x.dtype, layout))
    pairs = torch.zeros((ids.numel(), down.shape[1]), dtype=torch.float32, device=x.device)
    pairs[order] = down.float() * call.topk_weights.flatten()[order, None]
    return (pairs.reshape(len(x), ids.shape[1], -1).sum(1) * call.routed_scaling_factor).to(x.dtype)
