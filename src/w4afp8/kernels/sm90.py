"""The road from an op to the CUDA kernels; when it is closed, the plain torch twin serves."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.kernels import build, checks, schedules


def serves(x: Tensor, layout: str) -> bool:
    """Whether the CUDA kernels take this call: a Hopper tensor, prepacked weights, and a library to run."""
    return x.is_cuda and layout == "sm90" and build.load()


def grouped_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor | None,
    out_dtype: torch.dtype,
    schedule: schedules.Schedule | None = None,
) -> Tensor:
    """The grouped GEMM on the device; `schedule` overrides the choice, as tuning does."""
    checks.require(build.load(), "device", torch.cuda.get_device_name(), "an SM90 GPU and compiled kernels")
    experts, row_blocks, *_ = weight.shape
    out = x_scale.new_empty((x.shape[0], row_blocks * 64), dtype=out_dtype)
    if not len(x):
        return out
    problem = schedules.Problem(
        tokens=len(x), experts=experts, rows=out.shape[1], cols=x.shape[1], group_scale=x_scale.ndim == 2
    )
    row = schedule or schedules.choose(problem)
    torch.ops.w4afp8_sm90.grouped_gemm(x, x_scale, weight, weight_scale, offsets, out, row.kernel, row.split_groups)
    return out
