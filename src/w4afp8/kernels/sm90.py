"""The road from an op to the CUDA kernels; when it is closed, the plain torch twin serves."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from w4afp8.errors import KernelError
from w4afp8.kernels import build, checks, layers, schedules
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.checks import FP8, GROUP_K
from w4afp8.kernels.layout import TILE_ROWS

MODES = {"token": 0, "tensor": 1, "group128": 2}
MAX_TOP_K = 64  # what the kernels that route and sum hold in shared memory


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
        checks.aligned(x, "x")
        with torch.cuda.device(x.device):  # kernels are launched on the current device
            torch.ops.w4afp8_sm90.quantize(x, scale, q, out_scale, MODES[mode])
    elif scale is not None:
        out_scale.copy_(scale.reshape(1))
    return q, out_scale


def grouped_gemm(
    call: GemmCall,
    schedule: schedules.Schedule | None = None,
    expected_rows: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The grouped GEMM on the device, of an sm90 weight.

    `schedule` overrides the choice, as tuning does; `expected_rows` guides it where fewer rows than x has are filled;
    `out` [T, N] is written instead of a new tensor: tests and tuning poison it first.
    """
    checks.require(build.load(), "device", torch.cuda.get_device_name(), "an SM90 GPU and compiled kernels")
    x, x_scale, weight, weight_scale, offsets, out_dtype, _, weights_ready = call
    experts, row_blocks, *_ = weight.shape
    if out is None:
        out = torch.empty((len(x), row_blocks * TILE_ROWS), dtype=out_dtype, device=x.device)
    if not len(x):
        return out
    for name, t in (("x", x), ("x_scale", x_scale), ("weight", weight), ("weight_scale", weight_scale), ("out", out)):
        checks.aligned(t, name)
    problem = schedules.Problem(
        tokens=expected_rows or len(x),
        experts=experts,
        rows=out.shape[1],
        cols=x.shape[1],
        group_scale=x_scale.ndim == 2,
        float_scale=weight_scale.dtype == torch.float32,
    )
    with torch.cuda.device(x.device):
        row = schedule or schedules.choose(problem)
        tensors = x, x_scale, weight, weight_scale, offsets, out
        torch.ops.w4afp8_sm90.grouped_gemm(*tensors, weights_ready, row.kernel, row.split_groups)
    return out


def fused_moe(call: MoECall, one_launch: layers.OneLaunch | bool = True, out: Tensor | None = None) -> Tensor:
    """One layer on the device: in one launch while experts have few rows, in five or six beyond.

    Everything stays on the device: buffers are sized for the case that every choice is local, and the kernels stop at
    the rows that are there.  `one_launch` overrides the choice (False: several), as tests and measurements do; `out`
    [T, H] is written instead of a new tensor.

    Raises: KernelError for more than 64 choices a token, and for a layer that the kernel of `one_launch` cannot run.
    """
    checks.require(build.load(), "device", torch.cuda.get_device_name(), "an SM90 GPU and compiled kernels")
    if out is None:
        out = torch.empty_like(call.x)
    if not len(call.x):
        return out
    checks.require(
        call.topk_ids.shape[1] <= MAX_TOP_K, "topk_ids", checks.describe(call.topk_ids), f"top_k <= {MAX_TOP_K}"
    )
    most = schedules.MAX_EXPERTS
    checks.require(len(call.w13) <= most, "w13", f"{len(call.w13)} experts", f"at most {most} on a device")
    for name, t in (
        ("x", call.x),
        ("out", out),
        *((n, getattr(call, n)) for n in ("w13", "w13_scale", "w2", "w2_scale")),
    ):
        checks.aligned(t, name)
    layer = layer_of(call)
    row = layers.choose(layer) if one_launch is True else one_launch
    if row and (why := row.cannot(layer)):
        raise KernelError(f"{row.kernel}: does not run this layer: {'; '.join(why)}")
    with torch.cuda.device(call.x.device):
        return _one_launch(call, layer, row, out) if row else _several_launches(call, layer, out)


def layer_of(call: MoECall) -> layers.Layer:
    """What the host knows of a call."""
    experts, pairs = call.w13.shape[0], call.topk_ids.numel()
    likely = max(1, pairs * experts // call.routed_experts) if call.routed_experts > experts else pairs
    inner, blocks = call.w2.shape[2] * GROUP_K, multiprocessors(call.x.device)
    return layers.Layer(pairs, likely, experts, call.x.shape[1], inner, -(-len(call.x) // blocks) if blocks else 1)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has, or this slice of it; none on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def _one_launch(call: MoECall, layer: layers.Layer, row: layers.OneLaunch, out: Tensor) -> Tensor:
    x = call.x

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    pairs, hidden, inner = layer.pairs, layer.hidden, layer.inner
    eights = pairs // 8 + min(pairs, layer.experts)  # rows are kept by eights, and every expert begins a new eight
    torch.ops.w4afp8_sm90.fused_layer(
        x,
        call.topk_ids.contiguous(),
        call.topk_weights.contiguous(),
        call.expert_begin,
        *(call.w13, call.w13_scale, call.w2, call.w2_scale, call.w13_input_scale, call.w2_input_scale),
        *(call.swiglu_limit, call.swiglu_alpha, call.swiglu_beta, call.routed_scaling_factor),
        empty(pairs, dtype=torch.int32),
        *(empty(eights, 8, hidden, dtype=FP8), empty(eights, 8)),
        empty(pairs, inner),
        *(empty(eights, 8, inner, dtype=FP8), empty(eights, 8)),
        empty(pairs, hidden, dtype=x.dtype),
        out,
        row.kernel,
    )
    return out


def _several_launches(call: MoECall, layer: layers.Layer, out: Tensor) -> Tensor:
    """Route and quantize (with many tokens two launches), gate_up, activate and quantize, down, sum."""
    kernels, x = torch.ops.w4afp8_sm90, call.x
    pairs, hidden, inner = layer.pairs, layer.hidden, layer.inner

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    def gemm(q: Tensor, scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
        # Whatever wrote the weights has ended: the launch before this one is of this layer, and has waited for it.
        product = GemmCall(q, scale, w, w_scale, offsets, x.dtype, "sm90", weights_ready=True)
        return grouped_gemm(product, expected_rows=layer.likely)

    q, scale = empty(pairs, hidden, dtype=FP8), empty(pairs if call.w13_input_scale is None else 1)
    rows, offsets = empty(pairs, dtype=torch.int32), empty(layer.experts + 1, dtype=torch.int32)
    # Copies come first: a launch reads what is older than the launch before it while that one still runs.
    ids, weights = call.topk_ids.contiguous(), call.topk_weights.contiguous()
    kernels.route_quantize(x, call.w13_input_scale, ids, call.expert_begin, q, scale, rows, offsets)
    gate_up = gemm(q, scale, call.w13, call.w13_scale)
    q, scale = empty(pairs, inner, dtype=FP8), empty(pairs if call.w2_input_scale is None else 1)
    swiglu = call.swiglu_limit, call.swiglu_alpha, call.swiglu_beta
    kernels.swiglu_quantize(gate_up, offsets, call.w2_input_scale, q, scale, *swiglu)
    down = gemm(q, scale, call.w2, call.w2_scale)
    kernels.combine(down, rows, weights, call.routed_scaling_factor, out)
    return out
