"""Routed experts beside the source's: outputs under recorded inputs, and weights with every fold undone.

A fold leaves the function, not the weights: gate and up columns carry 1/fold_H of the norm; up rows carry a factor per
intermediate channel, fitted here from the weights themselves, and down columns its inverse.
Letters: T tokens, H hidden, I intermediate, N x K a weight, G groups along K.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from w4afp8.formats._spec import GroupWeight
from w4afp8.numerics import groups, int4
from w4afp8.validate.findings import Check, ExpertError, LayerNumbers
from w4afp8.validate.sides import Inputs, Side

# Plain rounding to int4 g128 leaves 0.01 to 0.05; a quarter is an output that lost half its direction.
OUTPUT_ERROR = 0.25
WEIGHT_ERROR = 0.25
# Codes rounded from w/s ask for the scale s back within 1 to 2 % (rms over groups; 128 roundings average out).
# Scales of other groups stand 10 % and more away.
SCALE_MISFIT = 0.06
HALF_STEP = 0.501  # float32's own error in w / s is 1e-6
MOST_STEPS = 0.6  # nearest rounding leaves half a step; the rest is for the fitted factor of a folded channel
NEAREST_METHODS = ("rtn", "mse", "awq")  # methods that round each weight to the nearest code of its own scale
UNFOLDED = 0.02  # fitted factors closer to 1 than this (rms) are the noise of rounding
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
            self.nearest.skip(f"method {method or 'unknown'} does not round each weight by itself")

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
            found = expert_output(x_TH * fold_H, {p: w.dequantize() for p, w in after.items()})
            expected = expert_output(x_TH, before)
            weight = inputs.weight_of(expert, rows).double()[:, None]
            routed[0].index_add_(0, rows, found * weight)
            routed[1].index_add_(0, rows, expected * weight)
            error = relative_squared(found, expected)
            weight_error, misfit = self._compare_weights(names, before, after, fold_H)
            numbers.experts.append(ExpertError(expert, own, error, weight_error, misfit))
            self._judge_output(f"{source.family.expert(numbers.layer, expert)}", error)
        numbers.output_error = relative_squared(routed[0], routed[1])

    def _judge_output(self, name: str, error: float) -> None:
        self.outputs.examined += 1
        if not error <= OUTPUT_ERROR:
            self.outputs.blame(name, f"an output error of {error:.3g}", f"at most {OUTPUT_ERROR:g}", REQUANTIZE)

    def _compare_weights(
        self, names: dict[str, str], before: dict[str, Tensor], after: dict[str, GroupWeight], fold_H: Tensor
    ) -> tuple[dict[str, float], dict[str, float]]:
        targets = folded_source(before, after, fold_H)
        errors: dict[str, float] = {}
        misfits: dict[str, float] = {}
        for projection, name in names.items():
            weight, target_NK = after[projection], targets[projection]
            errors[projection] = relative_squared(weight.dequantize(), target_NK)
            misfits[projection] = scale_misfit(weight, target_NK)
            self.weights.examined += 1
            self.scales.examined += 1
            if not errors[projection] <= WEIGHT_ERROR:
                self.weights.blame(
                    name, f"a weight error of {errors[projection]:.3g}", f"at most {WEIGHT_ERROR:g}", REQUANTIZE
                )
            if not misfits[projection] <= SCALE_MISFIT:
                self.scales.blame(
                    f"{name}_scale_inv", f"group scales {misfits[projection]:.1%} from those the codes ask for (rms)",
                    f"at most {SCALE_MISFIT:.0%}", "scales of another order or matrix: " + REQUANTIZE,
                )  # fmt: skip
            if self.to_nearest:
                self._judge_codes(name, weight, target_NK)
        return errors, misfits

    def _judge_codes(self, name: str, weight: GroupWeight, target_NK: Tensor) -> None:
        self.nearest.examined += 1
        steps_NK = target_NK / groups.expand(weight.scale_NG, weight.group_k)
        off_NK = steps_NK.clamp_(int4.LOWEST, int4.HIGHEST).sub_(weight.codes_NK).abs_()
        if float(off_NK.max()) > MOST_STEPS:
            n, k = divmod(int(off_NK.argmax()), off_NK.shape[1])
            self.nearest.blame(
                f"{name}[{n}, {k}]", f"the code {int(weight.codes_NK[n, k])}, {off_NK[n, k]:.2f} steps off",
                f"a code within {MOST_STEPS:g} steps of its weight", f"damaged bytes: {REQUANTIZE}",
            )  # fmt: skip


def expert_output(x_TH: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """down (silu(gate x) * (up x)) in float64: [T, H] -> [T, H]."""
    x = x_TH.double()
    hidden = silu(x @ weights["gate_proj"].double().T) * (x @ weights["up_proj"].double().T)
    return hidden @ weights["down_proj"].double().T


def folded_source(before: dict[str, Tensor], after: dict[str, GroupWeight], fold_H: Tensor) -> dict[str, Tensor]:
    """The source's weights with the folds that the quantized ones carry."""
    gate, up = before["gate_proj"] / fold_H, before["up_proj"] / fold_H
    factor_I = _row_factor(after["up_proj"], up)
    return {"gate_proj": gate, "up_proj": up * factor_I[:, None], "down_proj": before["down_proj"] / factor_I}


def _row_factor(weight: GroupWeight, source_NK: Tensor) -> Tensor:
    """The factor by which each row of a quantized weight follows the source's: [N], 1 where no fold is needed.

    Nearest codes c of r * w satisfy |r * w / s - c| <= 1/2, so each code bounds r and a row leaves a narrow interval.
    Where no r satisfies all (another rounding method, a damaged code) it is fitted: <found, found> / <found, source>,
    because rounding errors stand across the codes, not across the weights.
    """
    codes_NK = weight.codes_NK.float()
    step_NK = groups.expand(weight.scale_NG, weight.group_k) / source_NK.abs()  # codes per unit of r, inverted
    aligned_NK = codes_NK * source_NK.sign()
    free_NK = (codes_NK > int4.LOWEST) & (codes_NK < int4.HIGHEST)  # a saturated code bounds from below only
    none = torch.zeros(())
    low_N = torch.where(aligned_NK > 0, (aligned_NK - HALF_STEP) * step_NK, none).amax(1)
    high_N = torch.where(free_NK, (aligned_NK + HALF_STEP) * step_NK, none + torch.inf).amin(1)
    one = (low_N <= 1) & (high_N >= 1)
    found_NK = weight.dequantize()
    size, along = (found_NK * found_NK).sum(1), (found_NK * source_NK).sum(1)
    fitted_N = torch.where((size > 0) & (along > 0), size / along, torch.ones_like(size))
    factor_N = torch.where((low_N <= high_N) & high_N.isfinite(), (low_N + high_N) / 2, fitted_N)
    factor_N = torch.where(one, torch.ones_like(factor_N), factor_N)
    return torch.ones_like(factor_N) if float((factor_N - 1).square().mean().sqrt()) < UNFOLDED else factor_N


def scale_misfit(weight: GroupWeight, target_NK: Tensor) -> float:
    """Rms over groups of (scale that fits the codes best / stored scale - 1), each weighed by its codes' energy."""
    n, k = weight.codes_NK.shape
    codes = weight.codes_NK.view(n, groups.count(k, weight.group_k), weight.group_k).float()
    energy_NG = codes.square().sum(-1)
    fitting_NG = (target_NK.view(codes.shape) * codes).sum(-1) / energy_NG.clamp_min(1)
    off_NG = (fitting_NG / weight.scale_NG - 1).square()
    return float(((off_NG * energy_NG).sum() / energy_NG.sum().clamp_min(1)).sqrt())


def relative_squared(found: Tensor, expected: Tensor) -> float:
    """|found - expected|^2 / |expected|^2, summed in float64; infinity when only `expected` is zero."""
    difference = float((found - expected).square().sum(dtype=torch.float64))
    size = float(expected.square().sum(dtype=torch.float64))
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))
