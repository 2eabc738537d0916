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
from typing import TypeVar

import torch
from torch import Tensor
from torch.library import Library, register_fake

from w4afp8.kernels import checks, reference, settings, sm90
from w4afp8.kernels.calls import GemmCall, LinearCall, MoECall
from w4afp8.kernels.checks import FP8, GROUP_K
from w4afp8.kernels.layout import TILE_BYTES, TILE_COLS, TILE_ROWS

Call = TypeVar("Call", GemmCall, LinearCall, MoECall)
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
    _check_prepack(weight, weight_scale)
    return reference.prepack(weight, weight_scale)


def unprepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `prepack`, bit for bit."""
    checks.weight(weight, weight_scale, "sm90")
    return reference.unprepack(weight, weight_scale)


def grouped_gemm(call: GemmCall) -> Tensor:
    """The grouped GEMM; on a Hopper GPU `W4AFP8_CHECK=1` has the offsets' values checked too, outside graph capture."""
    _check_gemm(call)
    if not sm90.serves(call.x, call.layout):
        return reference.grouped_gemm(call)
    if call.expert_offsets is not None and settings.checks_offsets() and not torch.cuda.is_current_stream_capturing():
        checks.offset_values(call.expert_offsets, call.x.shape[0])
    return sm90.grouped_gemm(call)


def linear(call: LinearCall) -> Tensor:
    """The dense case."""
    _check_linear(call)
    run = sm90.grouped_gemm if sm90.serves(call.x, call.layout) else reference.grouped_gemm
    return run(call.grouped())


def fused_moe(call: MoECall) -> Tensor:
    """A whole layer of routed experts."""
    _check_moe(call)
    return sm90.fused_moe(call) if sm90.serves(call.x, call.layout) else reference.fused_moe(call)


def _check_prepack(weight: Tensor, weight_scale: Tensor) -> checks.WeightShape:
    shape = checks.weight(weight, weight_scale, "canonical")
    checks.require(shape.rows % TILE_ROWS == 0, "weight", f"N={shape.rows}", f"a multiple of {TILE_ROWS}")
    return shape


def _check_gemm(call: GemmCall) -> checks.WeightShape:
    shape = checks.weight(call.weight, call.weight_scale, call.layout)
    checks.activations(call.x, call.x_scale, shape.cols)
    checks.same_device(call.x, call.weight)
    if call.expert_offsets is not None:
        checks.offsets(call.expert_offsets, shape.experts, call.x)
    checks.out_dtype(call.out_dtype)
    return shape


def _check_linear(call: LinearCall) -> checks.WeightShape:
    checks.require(
        call.weight.ndim >= 2, "weight", checks.describe(call.weight), "[N, K/2], or sm90 [N/64, K/128, 4096]"
    )
    return _check_gemm(call.grouped())


def _check_moe(call: MoECall) -> None:
    checks.routing(call.x, call.topk_ids, call.topk_weights)
    gate_up = checks.weight(call.w13, call.w13_scale, call.layout, "w13")
    down = checks.weight(call.w2, call.w2_scale, call.layout, "w2")
    width = call.x.shape[1]
    checks.require(gate_up.cols == width, "w13", f"K={gate_up.cols}", f"{width}, the columns of x")
    checks.require(
        down == (gate_up.experts, gate_up.cols, gate_up.rows // 2),
        "w2",
        list(down),
        f"[E, H, I] = [{gate_up.experts}, {gate_up.cols}, {gate_up.rows // 2}], as w13 {list(gate_up)} says",
    )
    checks.same_device(call.x, call.w13, "w13")
    checks.same_device(call.x, call.w2, "w2")
    checks.static_scale(call.w13_input_scale, call.x, "w13_input_scale")
    checks.static_scale(call.w2_input_scale, call.x, "w2_input_scale")
    checks.ids_range(call.expert_begin, call.routed_experts)


def _fake_quantize_fp8(x: Tensor, mode: str, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    checks.quantize(x, mode, scale)
    shape = {"token": [x.shape[0]], "tensor": [1], "group128": [x.shape[0], x.shape[1] // GROUP_K]}[mode]
    return x.new_empty(x.shape, dtype=FP8), x.new_empty(shape, dtype=torch.float32)


def _fake_prepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    e, n, k = _check_prepack(weight, weight_scale)
    return (
        weight.new_empty((e, n // TILE_ROWS, k // TILE_COLS, TILE_BYTES), dtype=torch.uint8),
        weight_scale.new_empty((e, n // TILE_ROWS, k // TILE_COLS, TILE_ROWS)),
    )


def _fake_unprepack(weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    e, n, k = checks.weight(weight, weight_scale, "sm90")
    return weight.new_empty((e, n, k // 2), dtype=torch.int8), weight_scale.new_empty((e, n, k // GROUP_K))


def _fake_grouped_gemm(call: GemmCall) -> Tensor:
    shape = _check_gemm(call)
    return call.x.new_empty((call.x.shape[0], shape.rows), dtype=call.out_dtype)


def _fake_linear(call: LinearCall) -> Tensor:
    shape = _check_linear(call)
    return call.x.new_empty((call.x.shape[0], shape.rows), dtype=call.out_dtype)


def _fake_fused_moe(call: MoECall) -> Tensor:
    _check_moe(call)
    return torch.empty_like(call.x)


def _spread(kind: Callable[..., Call], run: Callable[[Call], Tensor]) -> Callable[..., Tensor]:
    """`run` as torch calls it: arguments one by one, as the schema names them."""
    return lambda *arguments, **named: run(kind(*arguments, **named))


WEIGHT = "Tensor weight, Tensor weight_scale"
SCHEMAS: tuple[tuple[str, Callable[..., object], Callable[..., object]], ...] = (
    ("quantize_fp8(Tensor x, str mode, Tensor? scale=None) -> (Tensor, Tensor)", quantize_fp8, _fake_quantize_fp8),
    (f"prepack({WEIGHT}) -> (Tensor, Tensor)", prepack, _fake_prepack),
    (f"unprepack({WEIGHT}) -> (Tensor, Tensor)", unprepack, _fake_unprepack),
    (
        f"grouped_gemm(Tensor x, Tensor x_scale, {WEIGHT}, Tensor expert_offsets, ScalarType out_dtype, "
        'str layout="canonical", bool weights_ready=False) -> Tensor',
        _spread(GemmCall, grouped_gemm),
        _spread(GemmCall, _fake_grouped_gemm),
    ),
    (
        f"linear(Tensor x, Tensor x_scale, {WEIGHT}, ScalarType out_dtype, "
        'str layout="canonical", bool weights_ready=False) -> Tensor',
        _spread(LinearCall, linear),
        _spread(LinearCall, _fake_linear),
    ),
    (
        "fused_moe(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor w13, Tensor w13_scale, Tensor w2, "
        "Tensor w2_scale, Tensor? w13_input_scale=None, Tensor? w2_input_scale=None, float? swiglu_limit=None, "
        "float swiglu_alpha=1.0, float swiglu_beta=0.0, float routed_scaling_factor=1.0, int expert_begin=0, "
        'str layout="canonical", int routed_experts=0) -> Tensor',
        _spread(MoECall, fused_moe),
        _spread(MoECall, _fake_fused_moe),
    ),
)

for _schema, _run, _fake in SCHEMAS:
    _name = _schema.partition("(")[0]
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for _key in ("CPU", "CUDA"):
        LIBRARY.impl(_name, _run, _key)  # type: ignore[no-untyped-call]
    register_fake(f"w4afp8::{_name}", _fake, lib=LIBRARY)
