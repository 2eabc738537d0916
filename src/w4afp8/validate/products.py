"""Packed bytes multiplied by the ops that engines call, beside float64: whatever directory the bytes stand in.

The op decodes the bytes by its own code (kernels/), the float64 side by the format's (formats/): two readers.
Letters: T tokens, E experts of a batch, N x K a weight, G groups along K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

import w4afp8.kernels.ops  # noqa: F401  (registers torch.ops.w4afp8)
from w4afp8.formats._spec import GroupWeight
from w4afp8.numerics.distance import relative_frobenius
from w4afp8.validate import fused, micro
from w4afp8.validate.findings import Check
from w4afp8.validate.sides import Inputs
from w4afp8.validate.weights import multiply

# Relative Frobenius distance beyond what rounding the exact product to bfloat16 costs (1.7e-3 rms, up to 3.9e-3 when
# one output value dwarfs the others).  A float32 sum adds 1e-6, an FP8 tensor core's shorter one stays below 1e-3; a
# wrong nibble, scale or expert adds more than 1e-2.
GEMM_ERROR = 2e-3
# Packed weights of one call: a batch is held packed, prepacked and as codes, four times that.
BATCH_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
REPORT_IT = "report it with this directory"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some experts' packed weights as the op takes them, and what the format decodes from the same bytes."""

    packed: Tensor  # int8 [E, N, K/2], or what prepack makes of it; uint8 of MXFP4
    scale: Tensor  # bfloat16 or float32 [E, N, G], likewise; uint8 exponents of MXFP4
    layout: str  # canonical, sm90, or mxfp4
    decoded: list[GroupWeight]  # [N, K] each


def compare_products(
    check: Check, names: Sequence[str], weights: Batch, x: Sequence[Tensor]
) -> tuple[list[Tensor], float]:
    """The float64 products of a batch, and how far the op's are from them at most; `check` blames by `names`.

    Shapes: x is [T, K] for each expert, T its own.
    """
    bounds = [0, *torch.tensor([len(rows) for rows in x]).cumsum(0).tolist()]
    codes, scale_T = torch.ops.w4afp8.quantize_fp8(torch.cat(list(x)), "token")
    product = _product(codes, scale_T, weights, torch.tensor(bounds, device=codes.device))
    exact: list[Tensor] = []
    worst = 0.0
    for place, (name, begin, end) in enumerate(zip(names, bounds, bounds[1:])):
        mine = slice(begin, end)
        seen = codes[mine].double() * scale_T[mine, None].double()
        exact.append(multiply(seen, weights.decoded[place]))
        error = beyond_rounding(product[mine], exact[-1])
        worst = max(worst, error)
        check.examined += 1
        if not error <= GEMM_ERROR or not bool(product[mine].isfinite().all()):
            check.blame(
                name, f"a product {error:.2g} off (Frobenius)", f"at most {GEMM_ERROR:g}",
                f"the bytes or the kernel are wrong: {REPORT_IT}",
            )  # fmt: skip
    return exact, worst


def compare_layer(
    check: Check,
    name: str,
    inputs: Inputs,
    batch: Sequence[int],
    gate_up: Batch,
    down: Batch,
    static: fused.Static | None = None,
) -> float | None:
    """How far the op's sum over the experts of a batch is from the exact one; other experts add nothing to either.

    `static`: the activation scales that the op quantizes with, per token without them.  None where no token meets one
    of the experts.
    """
    ids, x = fused.local_ids(inputs, batch), inputs.x.to(torch.bfloat16)
    if not bool((ids >= 0).any()):
        return None
    weights = gate_up.packed, gate_up.scale, down.packed, down.scale
    found = torch.ops.w4afp8.fused_moe(x, ids, inputs.weights, *weights, *(static or (None, None)),
                                       layout=gate_up.layout)  # fmt: skip
    exact = fused.exact_sum(x, ids, inputs.weights, gate_up.decoded, down.decoded, static)
    error = beyond_rounding(found, exact)
    check.examined += 1
    if not error <= fused.LAYER_ERROR or not bool(found.isfinite().all()):
        check.blame(
            name, f"a sum {error:.2g} off (Frobenius)", f"at most {fused.LAYER_ERROR:g}",
            f"the bytes or the kernels are wrong: {REPORT_IT}",
        )  # fmt: skip
    return error


def beyond_rounding(found: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance of `found` from `exact`, less that of `exact` rounded to the type of `found`."""
    rounding = relative_frobenius(exact.to(found.dtype), exact)
    return max(0.0, relative_frobenius(found, exact) - rounding)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up in float32: [T, 2I], gate first -> [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (silu(gate) * up).float()


def _product(codes: Tensor, scale_T: Tensor, weights: Batch, offsets: Tensor) -> Tensor:
    """What an engine computes from the bytes: bfloat16 [T, N]."""
    if weights.layout == "mxfp4":
        return micro.grouped_product(codes, scale_T, weights.packed, weights.scale, offsets)
    operands = codes, scale_T, weights.packed, weights.scale, offsets, torch.bfloat16, weights.layout
    product: Tensor = torch.ops.w4afp8.grouped_gemm(*operands)
    return product
