"""What is measured on every expert, whatever the method, and the gate that no bad number passes."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights
from w4afp8.quantize.rtn import round_to_nearest

SITES = ("gate_up", "down")


def measure(
    weights: ExpertWeights, inputs: ExpertInputs, result: ExpertResult
) -> tuple[dict[str, dict[str, float]], float]:
    """Relative mean squared errors beside plain rounding's, and the largest magnitude that reaches `down`.

    `gate_up` is the error of silu(gate x) * (up x), `down` that of the expert's whole output, both against the source
    expert on its own calibration tokens, activations unrounded.
    """
    variants = {
        "rtn": tuple(round_to_nearest(w).dequantize() for w in (weights.gate_IH, weights.up_IH, weights.down_HI)),
        "chosen": (result.gate.dequantize(), result.up.dequantize(), result.down.dequantize()),
    }
    squares = {site: dict.fromkeys((*variants, "size"), 0.0) for site in SITES}
    largest = 0.0
    for piece in pieces(len(inputs.x_nH), rows_per_piece(inputs.x_nH.shape[1], len(weights.gate_IH))):
        x = inputs.x_nH[piece]
        h = intermediate(x, weights.gate_IH, weights.up_IH)
        y = h @ weights.down_HI.T
        squares["gate_up"]["size"] += _squares(h)
        squares["down"]["size"] += _squares(y)
        for name, (gate, up, down) in variants.items():
            seen = intermediate(x, gate, up)
            squares["down"][name] += _squares(seen @ down.T - y)
            if name == "chosen":
                largest = max(largest, seen.abs().max().item())
                if result.down_fold_I is not None:
                    seen = seen * result.down_fold_I
            squares["gate_up"][name] += _squares(seen - h)
    errors = {
        site: {name: found[name] / found["size"] if found["size"] else 0.0 for name in variants}
        for site, found in squares.items()
    }
    return errors, largest


def _squares(error: Tensor) -> float:
    return error.square().sum(dtype=torch.float64).item()


def check(name: str, weight: GroupWeight) -> None:
    """Raises: QuantizationError when a scale is not finite and positive as the bf16 that consumers read."""
    scale = weight.scale_NG.to(torch.bfloat16).float()
    bad = (~torch.isfinite(scale) | (scale <= 0)).nonzero()
    if len(bad):
        n, g = bad[0].tolist()
        raise QuantizationError(
            f"{name}: the scale of row {n}, group {g} is {weight.scale_NG[n, g].item()}, expected a positive bf16; "
            "nothing of this layer was kept"
        )
