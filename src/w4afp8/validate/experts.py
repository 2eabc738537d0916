"""Routed experts beside the source's: outputs under recorded inputs, and weights with every fold undone.

A fold leaves the function, not the weights: gate and up columns carry 1/fold_H of the norm; up rows carry a factor per
intermediate channel, fitted here from the weights themselves, and down columns its inverse.
Letters: T tokens, H hidden, I intermediate, N x K a weight, G groups along K.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from w4afp8.formats._spec import GroupWeight
from w4afp8.validate.findings import Check, ExpertError, LayerNumbers
from w4afp8.validate.sides import Inputs, Side
from w4afp8.validate.weights import Comparison, compare, multiply, relative_squared, row_factor

# Plain rounding to int4 g128 leaves 0.01 to 0.05; a quarter is an output that lost half its direction.
OUTPUT_ERROR = 0.25
WEIGHT_ERROR = 0.25
# Codes rounded from w/s ask for the scale s back within 3 % (rms over groups; 128 roundings average out), codes that
# were chosen together within 4 %.  Scales of other groups stand 15 % and more away.
SCALE_MISFIT = 0.08
MOST_STEPS = 0.51  # nearest rounding leaves half a step, and float32 a little
NEAREST_METHODS = ("rtn",)  # methods that round each weight by itself and fold nothing
REQUANTIZE = "quantize this layer again"


class ExpertChecks:
    """Four checks over every expert that is compared."""

    def __init__(self, method: str | None) -> None:
        self.outputs = Check("expert outputs", "each expert's output under the recorded inputs is the source's")
        self.weights = Check("expert weights", "each expert's weights are the source's, folds undone")
        self.scales = Check("scale fit", "every group's scale is the one that its codes were rounded with")
        self.nearest = Check("nearest codes", "every code is the nearest to its weight")
        self.to_nearest = method in NEAREST_METHODS
        if not self.to_nearest:
            self.nearest.idle = f"method {method or 'unknown'} does not round each weight by itself"

    @property
    def all(self) -> list[Check]:
        return [self.outputs, self.weights, self.scales, self.nearest]

    def run(
        self, source: Side, output: Side, numbers: LayerNumbers, inputs: Inputs, fold_H: Tensor, chosen: list[int]
    ) -> None:
        """Compare the chosen experts of one layer, one at a time; products and sums in float64."""
        routed = torch.zeros(2, *inputs.x.shape, dtype=torch.float64)
        for expert in chosen:
            rows, own = inputs.rows_of(expert)
            names = output.expert_names(numbers.layer, expert)
            before = {p: source.weights.matrix(name) for p, name in names.items()}
            after = {p: output.group_weight(name) for p, name in names.items()}
            x_TH = inputs.x[rows]
            found = expert_output(x_TH * fold_H, after)
            expected = expert_output(x_TH, before)
            weight = inputs.weight_of(expert, rows).double()[:, None]
            routed[0].index_add_(0, rows, found * weight)
            routed[1].index_add_(0, rows, expected * weight)
            error = relative_squared(found, expected)
            weight_error, misfit = self._compare_weights(output, names, before, after, fold_H)
            numbers.experts.append(ExpertError(expert, own, error, weight_error, misfit))
            self._judge_output(f"{source.family.expert(source.d, numbers.layer, expert)}", error)
        numbers.output_error = relative_squared(routed[0], routed[1])

    def _judge_output(self, name: str, error: float) -> None:
        self.outputs.examined += 1
        if not error <= OUTPUT_ERROR:
            self.outputs.blame(name, f"an output error of {error:.3g}", f"at most {OUTPUT_ERROR:g}", REQUANTIZE)

    def _compare_weights(
        self,
        output: Side,
        names: dict[str, str],
        before: dict[str, Tensor],
        after: dict[str, GroupWeight],
        fold_H: Tensor,
    ) -> tuple[dict[str, float], dict[str, float]]:
        column_H = 1 / fold_H
        factor_I = None if self.to_nearest else row_factor(after["up_proj"], before["up_proj"], column_H)
        folds = {
            "gate_proj": (None, column_H),
            "up_proj": (factor_I, column_H),
            "down_proj": (None, None if factor_I is None else 1 / factor_I),
        }
        found = {site: compare(after[site], before[site], *folds[site]) for site in names}
        for site, name in names.items():
            self._judge_weight(name, output.weights.inventory[name].tensors[1].name, found[site], after[site])
        return {s: c.error for s, c in found.items()}, {s: c.scale_misfit for s, c in found.items()}

    def _judge_weight(self, name: str, scale_name: str, found: Comparison, weight: GroupWeight) -> None:
        self.weights.examined += 1
        self.scales.examined += 1
        if not found.error <= WEIGHT_ERROR:
            self.weights.blame(name, f"a weight error of {found.error:.3g}", f"at most {WEIGHT_ERROR:g}", REQUANTIZE)
        if not found.scale_misfit <= SCALE_MISFIT:
            self.scales.blame(
                scale_name,
                f"group scales {found.scale_misfit:.1%} from those the codes ask for (rms)",
                f"at most {SCALE_MISFIT:.0%}",
                f"scales of another order or matrix: {REQUANTIZE}",
            )
        if not self.to_nearest:
            return
        self.nearest.examined += 1
        if not found.farthest_steps <= MOST_STEPS:
            n, k = found.farthest
            self.nearest.blame(
                f"{name}[{n}, {k}]",
                f"the code {int(weight.codes_NK[n, k])}, {found.farthest_steps:.2f} steps off",
                f"a code within {MOST_STEPS:g} steps of its weight",
                f"damaged bytes: {REQUANTIZE}",
            )


def expert_output(x_TH: Tensor, weights: Mapping[str, GroupWeight | Tensor]) -> Tensor:
    """down (silu(gate x) * (up x)) in float64: [T, H] -> [T, H]."""
    hidden = silu(multiply(x_TH, weights["gate_proj"])) * multiply(x_TH, weights["up_proj"])
    return multiply(hidden, weights["down_proj"])
