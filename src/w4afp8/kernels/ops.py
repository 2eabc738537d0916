"""`torch.ops.w4afp8.*`: one schema per op, checked the same way everywhere, served by CUDA kernels or plain torch.

| op | does |
| --- | --- |
| `quantize_fp8` | activations to e4m3, scale per token, per tensor (static or not) or per 128 inputs of a token |
| `prepack`, `unprepack` | canonical SGLang w4afp8 bytes to the kernels' `sm90` layout and back |
| `grouped_gemm` | rows sorted by expert times each expert's int4 weight |
| `linear` | the same for one weight |
| `fused_moe` | a whole layer of routed experts |

Canonical weights are int8 [E, N, K/2], low nibble = even k, two's complement, with scales [E, N, K/128]; `sm90`
weights are what `prepack` returns.  `scale` always means real = code * scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, register_fake

from w4afp8.kernels import checks, reference, sm90
from w4afp8.kernels.checks import FP8, GROUP_K
from w4afp8.kernels.layout import TILE_BYTES, TILE_COLS, TILE_ROWS

LIBRARY = Library("w4afp8", "DEF")  # type: ignore[no-untyped-call]


def quantize_fp8(x: Tensor, mode: str, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize activations [T, K] to e4m3; returns q and the float32 scale (real = q * scale).

    Modes: "token" (scale [T]), "tensor" (scale [1], static when given), "group128" (scale [T, K/128]).
    """
    checks.quantize(x, mode, scale)
    run = sm90.quantize_fp8 if sm90.quantizes(x, mode, scale) else reference.quantize_fp8
    return run(x.contiguous(), mode, scale)


def prepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical [E, N, K/2] and [E, N, K/128] to sm90 [E, N/64, K/128, 4096] and [E, N/64, K/128, 64]."""
    shape = checks.weight(weight, weight_scale, "canonical")
    checks.require(shape.rows % TILE_ROWS == 0, "weight", f"N={shape.rows}", f"a multiple of {TILE_ROWS}")
    return reference.prepack(weight, weight_scale)


def unprepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `prepack`, bit for bit."""
    checks.weight(weight, weight_scale, "sm90")
    return reference.unprepack(weight, weight_scale)


def grouped_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    expert_offsets: Tensor,
    out_dtype: torch.dtype,
    layout: str = "canonical",
) -> Tensor:
    """Rows offsets[e]..offsets[e+1] of x [T, K] times expert e's weight -> [T, N]."""
    _check_gemm(x, x_scale, weight, weight_scale, expert_offsets, out_dtype, layout)
    if sm90.serves(x, layout):
        return sm90.grouped_gemm(x, x_scale, weight, weight_scale, expert_offsets, out_dtype)
    offsets = checks.offset_values(expert_offsets, x.shape[0])
    return reference.grouped_gemm(x, x_scale, weight, weight_scale, offsets, out_dtype, layout)


def linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    layout: str = "canonical",
) -> Tensor:
    """x [T, K] times one weight: canonical [N, K/2] or sm90 [N/64, K/128, 4096] -> [T, N]."""
    _check_linear(x, x_scale, weight, weight_scale, out_dtype, layout)
    if sm90.serves(x, layout):
        return sm90.grouped_gemm(x, x_scale, weight[None], weight_scale[None], None, out_dtype)
    return reference.grouped_gemm(x, x_scale, weight[None], weight_scale[None], [0, x.shape[0]], out_dtype, layout)


def fused_moe(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w13_input_scale: Tensor | None = None,
    w2_input_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    routed_scaling_factor: float = 1.0,
    expert_begin: int = 0,
    layout: str = "canonical",
    routed_experts: int = 0,
) -> Tensor:
    """The routed experts of one layer: x [T, H] -> [T, H].

    w13 is [E, 2I, H], gate rows first; w2 is [E, H, I].  Ids in `topk_ids` are global: this rank holds experts
    `expert_begin` .. `expert_begin + E - 1` and every other id adds nothing.  Without static input scales the
    activations are quantized per token.  `routed_experts`, how many experts the router chooses from over all ranks (0:
    those here), only tells the GPU's schedule how many choices to expect.
    """
    _check_moe(x, topk_ids, topk_weights, w13, w13_scale, w2, w2_scale, w13_input_scale, w2_input_scale, layout)
    if sm90.serves(x, layout):
        return sm90.fused_moe(
            x,
            topk_ids,
            topk_weights,
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
            expert_begin,
            routed_experts,
        )
    return reference.fused_moe(
        x,
        topk_ids,
        topk_weights,
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
        expert_begin,
        layout,
    )


def _check_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    expert_offsets: Tensor,
    out_dtype: torch.dtype,
    layout: str,
) -> checks.WeightShape:
    shape = checks.weight(weight, weight_scale, layout)
    checks.activations(x, x_scale, shape.cols)
    checks.same_device(x, weight)
    checks.offsets(expert_offsets, shape.experts, x)
    checks.out_dtype(out_dtype)
    return shape


def _check_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, out_dtype: torch.dtype, layout: str
) -> checks.WeightShape:
    checks.require(weight.ndim >= 2, "weight", checks.describe(weight), "[N, K/2], or sm90 [N/64, K/128, 4096]")
    shape = checks.weight(weight[None], weight_scale[None], layout)
    checks.activations(x, x_scale, shape.cols)
    checks.same_device(x, weight)
    checks.out_dtype(out_dtype)
    return shape


def _check_moe(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w13_input_scale: Tensor | None,
    w2_input_scale: Tensor | None,
    layout: str,
) -> None:
    checks.routing(x, topk_ids, topk_weights)
    gate_up, down = checks.weight(w13, w13_scale, layout, "w13"), checks.weight(w2, w2_scale, layout, "w2")
    checks.require(gate_up.cols == x.shape[1], "w13", f"K={gate_up.cols}", f"{x.shape[1]}, the columns of x")
    checks.require(
        down == (gate_up.experts, gate_up.cols, gate_up.rows // 2),
        "w2",
        list(down),
        f"[E, H, I] = [{gate_up.experts}, {gate_up.cols}, {gate_up.rows // 2}], as w13 {list(gate_up)} says",
    )
    for w, name in ((w13, "w13"), (w2, "w2")):
        checks.same_device(x, w, name)
    checks.static_scale(w13_input_scale, x, "w13_input_scale")
    checks.static_scale(w2_input_scale, x, "w2_input_scale")


def _fake_quantize_fp8(x: Tensor, mode: str, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    checks.quantize(x, mode, scale)
    shape = {"token": [x.shape[0]], "tensor": [1], "group128": [x.shape[0], x.shape[1] // GROUP_K]}[mode]
    return x.new_empty(x.shape, dtype=FP8), x.new_empty(shape, dtype=torch.float32)


def _fake_prepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    e, n, k = checks.weight(weight, weight_scale, "canonical")
    return (
        weight.new_empty((e, n // TILE_ROWS, k // TILE_COLS, TILE_BYTES), dtype=torch.uint8),
        weight_scale.new_empty((e, n // TILE_ROWS, k // TILE_COLS, TILE_ROWS)),
    )


def _fake_unprepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    e, n, k = checks.weight(weight, weight_scale, "sm90")
    return weight.new_empty((e, n, k // 2), dtype=torch.int8), weight_scale.new_empty((e, n, k // GROUP_K))


def _fake_grouped_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    expert_offsets: Tensor,
    out_dtype: torch.dtype,
    layout: str = "canonical",
) -> Tensor:
    shape = _check_gemm(x, x_scale, weight, weight_scale, expert_offsets, out_dtype, layout)
    return x.new_empty((x.shape[0], shape.rows), dtype=out_dtype)


def _fake_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    layout: str = "canonical",
) -> Tensor:
    shape = _check_linear(x, x_scale, weight, weight_scale, out_dtype, layout)
    return x.new_empty((x.shape[0], shape.rows), dtype=out_dtype)


def _fake_fused_moe(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w13_input_scale: Tensor | None = None,
    w2_input_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    routed_scaling_factor: float = 1.0,
    expert_begin: int = 0,
    layout: str = "canonical",
    routed_experts: int = 0,
) -> Tensor:
    _check_moe(x, topk_ids, topk_weights, w13, w13_scale, w2, w2_scale, w13_input_scale, w2_input_scale, layout)
    return torch.empty_like(x)


WEIGHT = "Tensor weight, Tensor weight_scale"
SCHEMAS: tuple[tuple[str, Callable[..., object], Callable[..., object]], ...] = (
    ("quantize_fp8(Tensor x, str mode, Tensor? scale=None) -> (Tensor, Tensor)", quantize_fp8, _fake_quantize_fp8),
    (f"prepack({WEIGHT}) -> (Tensor, Tensor)", prepack, _fake_prepack),
    (f"unprepack({WEIGHT}) -> (Tensor, Tensor)", unprepack, _fake_unprepack),
    (
        f"grouped_gemm(Tensor x, Tensor x_scale, {WEIGHT}, Tensor expert_offsets, ScalarType out_dtype, "
        'str layout="canonical") -> Tensor',
        grouped_gemm,
        _fake_grouped_gemm,
    ),
    (
        f'linear(Tensor x, Tensor x_scale, {WEIGHT}, ScalarType out_dtype, str layout="canonical") -> Tensor',
        linear,
        _fake_linear,
    ),
    (
        "fused_moe(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor w13, Tensor w13_scale, Tensor w2, "
        "Tensor w2_scale, Tensor? w13_input_scale=None, Tensor? w2_input_scale=None, float? swiglu_limit=None, "
        "float swiglu_alpha=1.0, float swiglu_beta=0.0, float routed_scaling_factor=1.0, int expert_begin=0, "
        'str layout="canonical", int routed_experts=0) -> Tensor',
        fused_moe,
        _fake_fused_moe,
    ),
)

for _schema, _run, _fake in SCHEMAS:
    _name = _schema.partition("(")[0]
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for _key in ("CPU", "CUDA"):
        LIBRARY.impl(_name, _run, _key)  # type: ignore[no-untyped-call]
    register_fake(f"w4afp8::{_name}", _fake, lib=LIBRARY)
