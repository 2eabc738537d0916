"""The road from an op to the CUDA kernels; when it is closed, the plain torch twin serves."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.kernels import build, checks, layers, schedules
from w4afp8.kernels.checks import FP8, GROUP_K

MODES = {"token": 0, "tensor": 1, "group128": 2}


def serves(x: Tensor, layout: str) -> bool:
    """Whether the CUDA kernels take this call: a Hopper tensor, prepacked weights, and a library to run."""
    return x.is_cuda and layout == "sm90" and build.load()


def quantizes(x: Tensor, mode: str, scale: Tensor | None) -> bool:
    """Whether the CUDA quantizer takes this call: it reads eight values a time and makes no pass over all rows."""
    return x.is_cuda and x.shape[1] % 8 == 0 and (mode != "tensor" or scale is not None) and build.load()


def quantize_fp8(x: Tensor, mode: str, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The quantizer on the device; its bytes equal the reference's."""
    tokens, cols = x.shape
    q = torch.empty_like(x, dtype=FP8)
    shape = {"token": [tokens], "tensor": [1], "group128": [tokens, cols // GROUP_K]}[mode]
    out_scale = torch.empty(shape, dtype=torch.float32, device=x.device)
    if tokens:
        torch.ops.w4afp8_sm90.quantize(x, scale, q, out_scale, MODES[mode])
    elif scale is not None:
        out_scale.copy_(scale.reshape(1))
    return q, out_scale


def grouped_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor | None,
    out_dtype: torch.dtype,
    schedule: schedules.Schedule | None = None,
    expected_rows: int | None = None,
) -> Tensor:
    """The grouped GEMM on the device.

    `schedule` overrides the choice, as tuning does; `expected_rows` guides it where fewer rows than x has are filled.
    """
    checks.require(build.load(), "device", torch.cuda.get_device_name(), "an SM90 GPU and compiled kernels")
    experts, row_blocks, *_ = weight.shape
    out = torch.empty((x.shape[0], row_blocks * 64), dtype=out_dtype, device=x.device)
    if not len(x):
        return out
    for name, t in (("x", x), ("x_scale", x_scale), ("weight", weight), ("weight_scale", weight_scale)):
        checks.require(t.data_ptr() % 16 == 0, name, f"address {t.data_ptr():#x}", "a multiple of 16; call .clone()")
    problem = schedules.Problem(
        tokens=expected_rows or len(x),
        experts=experts,
        rows=out.shape[1],
        cols=x.shape[1],
        group_scale=x_scale.ndim == 2,
    )
    row = schedule or schedules.choose(problem)
    torch.ops.w4afp8_sm90.grouped_gemm(x, x_scale, weight, weight_scale, offsets, out, row.kernel, row.split_groups)
    return out


def fused_moe(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w13_input_scale: Tensor | None,
    w2_input_scale: Tensor | None,
    swiglu_limit: float | None,
    swiglu_alpha: float,
    swiglu_beta: float,
    routed_scaling_factor: float,
    expert_begin: int,
    routed_experts: int,
    one_launch: layers.OneLaunch | bool = True,
) -> Tensor:
    """One layer: in one launch while experts have few rows, else in five or six.

    These are: route, quantize, gate_up, activate and quantize, down, sum.  Everything stays on the device: buffers are
    sized for the case that every choice is local, and the kernels stop at the rows that the offsets count.
    `one_launch` overrides the choice, as tuning and tests do.
    """
    checks.require(build.load(), "device", torch.cuda.get_device_name(), "an SM90 GPU and compiled kernels")
    kernels = torch.ops.w4afp8_sm90
    out = torch.empty_like(x)
    if not len(x):
        return out
    tokens, top_k = topk_ids.shape
    experts, hidden, inner = w13.shape[0], x.shape[1], w2.shape[2] * GROUP_K
    pairs = tokens * top_k
    likely = max(1, pairs * experts // routed_experts) if routed_experts > experts else pairs

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    rows = empty(pairs, dtype=torch.int32)
    layer = layers.Layer(pairs, likely, experts, hidden, inner)
    row = layers.choose(layer) if one_launch is True else one_launch
    if row:
        for name, t in (("w13", w13), ("w13_scale", w13_scale), ("w2", w2), ("w2_scale", w2_scale), ("x", x)):
            checks.require(
                t.data_ptr() % 16 == 0, name, f"address {t.data_ptr():#x}", "a multiple of 16; call .clone()"
            )
        eights = pairs // 8 + min(pairs, experts)  # every expert begins a new eight
        kernels.fused_layer(
            x.contiguous(),
            topk_ids.contiguous(),
            topk_weights.contiguous(),
            expert_begin,
            w13,
            w13_scale,
            w2,
            w2_scale,
            w13_input_scale,
            w2_input_scale,
            swiglu_limit,
            swiglu_alpha,
            swiglu_beta,
            routed_scaling_factor,
            rows,
            empty(eights, 8, hidden, dtype=FP8),
            empty(eights, 8),
            empty(pairs, inner),
            empty(eights, 8, inner, dtype=FP8),
            empty(eights, 8),
            empty(pairs, hidden, dtype=x.dtype),
            out,
            row.kernel,
        )
        return out
    q, scale = empty(pairs, hidden, dtype=FP8), empty(pairs if w13_input_scale is None else 1)
    offsets = empty(experts + 1, dtype=torch.int32)
    kernels.route_quantize(x, w13_input_scale, topk_ids.contiguous(), expert_begin, q, scale, rows, offsets)
    gate_up = grouped_gemm(q, scale, w13, w13_scale, offsets, x.dtype, expected_rows=likely)
    q, scale = empty(pairs, inner, dtype=FP8), empty(pairs if w2_input_scale is None else 1)
    kernels.swiglu_quantize(gate_up, offsets, w2_input_scale, q, scale, swiglu_limit, swiglu_alpha, swiglu_beta)
    down = grouped_gemm(q, scale, w2, w2_scale, offsets, x.dtype, expected_rows=likely)
    kernels.combine(down, rows, topk_weights.contiguous(), routed_scaling_factor, out)
    return out
