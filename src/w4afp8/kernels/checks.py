"""What every op demands of its arguments, said once: each refusal names argument, found and expected."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from w4afp8.errors import KernelError
from w4afp8.kernels.layout import TILE_BYTES, TILE_COLS, TILE_ROWS

GROUP_K = 128
FP8 = torch.float8_e4m3fn
LAYOUTS = ("canonical", "sm90")
SCALE_TYPES = (torch.float32, torch.bfloat16)
OUT_TYPES = (torch.bfloat16, torch.float16, torch.float32)
MODES = ("token", "tensor", "group128")


class WeightShape(NamedTuple):
    """What a weight's bytes stand for, whatever their layout."""

    experts: int
    rows: int
    cols: int


def require(ok: bool, argument: str, found: object, expected: str) -> None:
    """Raise the one message that every bad argument gets, unless `ok`."""
    if not ok:
        raise KernelError(f"{argument}: found {found}, expected {expected}")


def describe(x: Tensor) -> str:
    """dtype, shape and device, as messages show a tensor."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def weight(w: Tensor, scale: Tensor, layout: str, name: str = "weight") -> WeightShape:
    """Check a weight with its scales and return its logical shape [E, N, K]."""
    require(layout in LAYOUTS, "layout", repr(layout), f"one of {', '.join(LAYOUTS)}")
    require(w.dtype in (torch.int8, torch.uint8), name, describe(w), "int8 or uint8 bytes, two codes each")
    require(w.is_contiguous(), name, f"strides {w.stride()}", "a contiguous tensor; call .contiguous()")
    require(scale.dtype in SCALE_TYPES, f"{name}_scale", describe(scale), "float32 or bfloat16")
    require(scale.is_contiguous(), f"{name}_scale", f"strides {scale.stride()}", "a contiguous tensor")
    require(scale.device == w.device, f"{name}_scale", describe(scale), f"a tensor on {w.device}, where {name} is")
    if layout == "canonical":
        require(w.ndim == 3, name, describe(w), "[E, N, K/2]")
        experts, rows, cols = w.shape[0], w.shape[1], w.shape[2] * 2
        scales = [experts, rows, cols // GROUP_K]
    else:
        require(
            w.ndim == 4 and w.shape[3] == TILE_BYTES,
            name,
            describe(w),
            f"[E, N/{TILE_ROWS}, K/{TILE_COLS}, {TILE_BYTES}], as prepack returns it",
        )
        experts, rows, cols = w.shape[0], w.shape[1] * TILE_ROWS, w.shape[2] * TILE_COLS
        scales = [experts, w.shape[1], w.shape[2], TILE_ROWS]
    require(experts > 0 and rows > 0, name, describe(w), "at least one expert and one row")
    require(cols % GROUP_K == 0 and cols > 0, name, f"K={cols}", f"a multiple of {GROUP_K}, the scale group")
    require(list(scale.shape) == scales, f"{name}_scale", describe(scale), f"{scales} for {name} {list(w.shape)}")
    return WeightShape(experts, rows, cols)


def activations(x: Tensor, x_scale: Tensor, cols: int) -> None:
    """Check quantized activations [T, K] and their scales [T], [1] or [T, K/128]."""
    require(x.dtype == FP8, "x", describe(x), "float8_e4m3fn")
    require(x.ndim == 2 and x.shape[1] == cols, "x", describe(x), f"[T, {cols}], the weight's K")
    require(x.is_contiguous(), "x", f"strides {x.stride()}", "a contiguous tensor; call .contiguous()")
    require(x_scale.dtype == torch.float32, "x_scale", describe(x_scale), "float32")
    require(x_scale.is_contiguous(), "x_scale", f"strides {x_scale.stride()}", "a contiguous tensor")
    require(x_scale.device == x.device, "x_scale", describe(x_scale), f"a tensor on {x.device}, where x is")
    tokens = x.shape[0]
    shapes: tuple[list[object], ...] = ([1], [tokens], [tokens, cols // GROUP_K])
    require(
        list(x_scale.shape) in shapes, "x_scale", describe(x_scale), f"[1], [{tokens}] or [{tokens}, {cols // GROUP_K}]"
    )


def offsets(expert_offsets: Tensor, experts: int, x: Tensor) -> None:
    """Check the type and the length of the expert offsets; their values are `offset_values`' business."""
    require(
        expert_offsets.dtype in (torch.int32, torch.int64), "expert_offsets", describe(expert_offsets), "int32 or int64"
    )
    require(
        list(expert_offsets.shape) == [experts + 1],
        "expert_offsets",
        describe(expert_offsets),
        f"[{experts + 1}], one more than the weight's experts",
    )
    require(
        expert_offsets.is_contiguous(), "expert_offsets", f"strides {expert_offsets.stride()}", "a contiguous tensor"
    )
    require(
        expert_offsets.device == x.device,
        "expert_offsets",
        describe(expert_offsets),
        f"a tensor on {x.device}, where x is",
    )


def offset_values(expert_offsets: Tensor, tokens: int) -> list[int]:
    """The offsets as a list, proven to start at 0, end at T and never fall.  Reads the tensor: CPU or debugging."""
    values: list[int] = expert_offsets.tolist()
    require(
        values[0] == 0 and values[-1] == tokens,
        "expert_offsets",
        f"{values[0]} .. {values[-1]}",
        f"0 .. {tokens}, the rows of x",
    )
    for e, (a, b) in enumerate(pairwise(values)):
        require(a <= b, "expert_offsets", f"[{e}] = {a} and [{e + 1}] = {b}", "values that never fall")
    return values


def out_dtype(dtype: torch.dtype) -> None:
    """Check the type of the result."""
    require(dtype in OUT_TYPES, "out_dtype", dtype, "bfloat16, float16 or float32")


def quantize(x: Tensor, mode: str, scale: Tensor | None) -> None:
    """Check the arguments of `quantize_fp8`."""
    require(mode in MODES, "mode", repr(mode), f"one of {', '.join(MODES)}")
    require(x.dtype in OUT_TYPES, "x", describe(x), "bfloat16, float16 or float32")
    require(x.ndim == 2 and x.shape[1] > 0, "x", describe(x), "[T, K], K at least 1")
    if mode == "group128":
        require(x.shape[1] % GROUP_K == 0, "x", describe(x), f"K a multiple of {GROUP_K} for mode 'group128'")
    if scale is not None:
        require(mode == "tensor", "scale", f"a scale with mode {mode!r}", "a static scale only with mode 'tensor'")
        require(scale.dtype == torch.float32 and scale.numel() == 1, "scale", describe(scale), "one float32")
        require(scale.device == x.device, "scale", describe(scale), f"a tensor on {x.device}, where x is")


def routing(x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
    """Check the router's choice: [T, top_k] expert ids and weights."""
    require(x.dtype in (torch.bfloat16, torch.float16), "x", describe(x), "bfloat16 or float16")
    require(x.ndim == 2, "x", describe(x), "[T, H]")
    require(x.is_contiguous(), "x", f"strides {x.stride()}", "a contiguous tensor; call .contiguous()")
    require(topk_ids.dtype in (torch.int32, torch.int64), "topk_ids", describe(topk_ids), "int32 or int64")
    require(
        topk_ids.ndim == 2 and topk_ids.shape[0] == x.shape[0] and topk_ids.shape[1] > 0,
        "topk_ids",
        describe(topk_ids),
        f"[{x.shape[0]}, top_k], one row a token, top_k at least 1",
    )
    require(
        topk_weights.dtype == torch.float32 and topk_weights.shape == topk_ids.shape,
        "topk_weights",
        describe(topk_weights),
        f"float32 {list(topk_ids.shape)}, as topk_ids",
    )
    for name, t in (("topk_ids", topk_ids), ("topk_weights", topk_weights)):
        require(t.device == x.device, name, describe(t), f"a tensor on {x.device}, where x is")


def ids_range(expert_begin: int, routed_experts: int) -> None:
    """Ids of no expert are negative, so a range that began below zero would take them for experts."""
    require(0 <= expert_begin < 1 << 31, "expert_begin", expert_begin, "the id of this rank's first expert, from 0")
    require(routed_experts >= 0, "routed_experts", routed_experts, "how many experts are routed to, or 0")


def aligned(x: Tensor, name: str) -> None:
    """The kernels read and write sixteen bytes a time."""
    require(x.data_ptr() % 16 == 0, name, f"address {x.data_ptr():#x}", "a multiple of 16; call .clone()")


def same_device(x: Tensor, w: Tensor, name: str = "weight") -> None:
    """Activations and weights must live together."""
    require(w.device == x.device, name, describe(w), f"a tensor on {x.device}, where x is")


def static_scale(scale: Tensor | None, x: Tensor, name: str) -> None:
    """A static activation scale is one float32 beside the activations."""
    if scale is not None:
        require(scale.dtype == torch.float32 and scale.numel() == 1, name, describe(scale), "one float32")
        require(scale.device == x.device, name, describe(scale), f"a tensor on {x.device}, where x is")
