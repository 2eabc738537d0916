"""What is measured on every expert, whatever the method, and the gate that no bad number passes."""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.quantize._grid import INT4, Grid
from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights

SITES = ("gate_up", "down")


def measure(
    source: ExpertWeights, inputs: ExpertInputs, result: ExpertResult, scale_H: Tensor | None, grid: Grid = INT4
) -> tuple[dict[str, dict[str, float]], float]:
    """Relative mean squared errors beside plain rounding's on the same grid, and the largest input of `down`.

    `source` is the expert before the layer's fold, `inputs` and `result` are after it (by `scale_H`, if any).

    `gate_up` is the error of silu(gate x) * (up x), `down` that of the expert's whole output, both against the source
    expert on its own calibration tokens, activations unrounded.
    """
    exact = (source.gate_IH, source.up_IH, source.down_HI)
    rounded = tuple(grid.round_to_nearest(w).dequantize() for w in exact)
    chosen = (result.gate.dequantize(), result.up.dequantize(), result.down.dequantize())
    squares = {site: dict.fromkeys(("rtn", "chosen", "size"), 0.0) for site in SITES}
    largest = 0.0
    for piece in pieces(len(inputs.x_nH), rows_per_piece(inputs.x_nH.shape[1], len(source.gate_IH))):
        folded = inputs.x_nH[piece]
        x = folded if scale_H is None else folded * scale_H
        h = intermediate(x, exact[0], exact[1])
        y = h @ exact[2].T
        squares["gate_up"]["size"] += _squares(h)
        squares["down"]["size"] += _squares(y)
        for name, given, (gate, up, down) in (("rtn", x, rounded), ("chosen", folded, chosen)):
            seen = intermediate(given, gate, up)
            squares["down"][name] += _squares(seen @ down.T - y)
            if name == "chosen":
                largest = max(largest, seen.abs().max().item())
                if result.down_fold_I is not None:
                    seen = seen * result.down_fold_I
            squares["gate_up"][name] += _squares(seen - h)
    errors = {
        site: {name: found[name] / found["size"] if found["size"] else 0.0 for name in ("rtn", "chosen")}
        for site, found in squares.items()
    }
    return errors, largest


def _squares(error: Tensor) -> float:
    return error.square().sum(dtype=torch.float64).item()


def require_finite(name: str, numbers: Tensor) -> None:
    """Raises: QuantizationError when a number is NaN or infinite: runs that skip the survey still stop here."""
    if numbers.numel() and not all(torch.isfinite(end) for end in numbers.aminmax()):  # no mask as large as the tensor
        raise QuantizationError(
            f"{name}: NaN, infinity or beyond float32 in the source; nothing of this layer was kept"
        )


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
