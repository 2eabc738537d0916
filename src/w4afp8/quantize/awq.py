"""AWQ on Gram statistics, then codes chosen together.

1. norm -> gate/up: one scale per channel for the whole layer, a power of two, so that norm and router stay exact.
2. up -> down: one scale per intermediate channel and expert, free of charge.
3. Group scales and codes under the expert's own Gram: searched, rounded with feedback, then descended.

The exponent grids follow AWQ (arXiv 2306.00978): scale_j = x_j^a / w_j^b, where x and w are the root mean squares of
the channel's inputs and weights.  The loss of a candidate is measured, not modelled: the weights are quantized and the
error is taken under the Gram.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from w4afp8.families._spec import Dimensions
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.numerics import distance, groups
from w4afp8.quantize import _rounding, _scales
from w4afp8.quantize._fold import power_of_two
from w4afp8.quantize._gram import damp, gram
from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights, Fold, LayerView, Method
from w4afp8.recipes._recipe import Strict

# (a, b) of scale_j = x_j^a / w_j^b.  (0, 0) is no fold at all and always among them.
GRID = ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.25, 0.5), (0.5, 0.5), (0.5, 1.0))
LARGEST_SPREAD = 2.0**12  # between a fold's scales; beyond it activations leave e4m3's range


class Awq(Method):
    """AWQ folds, Gram scale search, feedback and descent; each part can be turned off."""

    class Options(Strict):
        """What the method does, and how hard it tries."""

        fold_norm: bool = True
        fold_down: bool = True
        min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.02  # a fold must save this share of the loss
        max_routing_moves: Annotated[float, Field(ge=0, le=1)] = 0.0005  # share of tokens
        feedback: bool = True
        rounds: Annotated[int, Field(ge=0)] = 4
        sweeps: Annotated[int, Field(ge=1)] = 2
        damping: Annotated[float, Field(gt=0)] = 0.003

    options: Options

    def fold(self, view: LayerView) -> Fold | None:
        if not self.options.fold_norm:
            return None
        mean_square, weight_square, count = 0.0, 0.0, 0
        for _, weights, inputs in view.experts():
            mean_square = mean_square + inputs.x_nH.square().mean(0)
            weight_square = weight_square + weights.gate_IH.square().mean(0) + weights.up_IH.square().mean(0)
            count += 1
        assert isinstance(mean_square, Tensor) and isinstance(weight_square, Tensor)
        x_H, w_H = (mean_square / count).sqrt(), (weight_square / (2 * count)).sqrt()
        candidates = [power_of_two(exponents(x_H, w_H, a, b)) for a, b in GRID]
        loss = [0.0] * len(GRID)
        for _, weights, inputs in view.experts():
            statistics = damp(gram(inputs.x_nH, inputs.weight_n), self.options.damping)
            both = torch.cat((weights.gate_IH, weights.up_IH))
            size = distance.gram_error(both, statistics)
            for i, scale in enumerate(candidates):
                loss[i] += folded_loss(both, statistics, scale) / size if size else 0.0
        best = min(range(len(GRID)), key=lambda i: loss[i])
        gain = 1 - loss[best] / loss[0] if loss[0] else 0.0
        evidence: dict[str, Any] = {"kept": False, "alpha": GRID[best][0], "beta": GRID[best][1], "gain": round(gain, 4)}
        if gain < self.options.min_gain:
            return None
        moves = view.routing_moves(candidates[best])
        if moves > self.options.max_routing_moves:
            return None
        evidence |= {"kept": True, "reason": "saves output error", "routing_moves": moves}
        return Fold(candidates[best], evidence)

    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        evidence: dict[str, Any] = {}
        wide = damp(gram(inputs.x_nH, inputs.weight_n), self.options.damping)
        h_gram, amax = self._down_statistics(weights, inputs)
        fold_I, (a, b) = self._down_fold(weights.down_HI, h_gram)
        evidence["fold_alpha"] = None if fold_I is None else [a, b]
        up_IH, down_HI = weights.up_IH, weights.down_HI
        if fold_I is not None:
            up_IH, down_HI = up_IH / fold_I[:, None], down_HI * fold_I
            h_gram = h_gram / fold_I[:, None] / fold_I
        both = self._round(torch.cat((weights.gate_IH, up_IH)), wide)
        rows = len(weights.gate_IH)
        gate = GroupWeight(both.codes_NK[:rows], both.scale_NG[:rows])
        up = GroupWeight(both.codes_NK[rows:], both.scale_NG[rows:])
        down = self._round(down_HI, damp(h_gram, self.options.damping))
        return ExpertResult(gate, up, down, fold_I, evidence)

    def _down_statistics(self, weights: ExpertWeights, inputs: ExpertInputs) -> tuple[Tensor, float]:
        total = torch.zeros(len(weights.gate_IH), len(weights.gate_IH), device=weights.gate_IH.device)
        for piece in pieces(len(inputs.x_nH), rows_per_piece(inputs.x_nH.shape[1], len(weights.gate_IH))):
            h = intermediate(inputs.x_nH[piece], weights.gate_IH, weights.up_IH)
            total += (h * inputs.weight_n[piece, None].square()).T @ h
        return total / inputs.weight_n.square().sum().clamp_min(1e-30), 0.0

    def _down_fold(self, down_HI: Tensor, h_gram: Tensor) -> tuple[Tensor | None, tuple[float, float]]:
        if not self.options.fold_down:
            return None, (0.0, 0.0)
        x_I, w_I = h_gram.diagonal().sqrt(), down_HI.square().mean(0).sqrt()
        candidates = [exponents(x_I, w_I, a, b) for a, b in GRID]
        statistics = damp(h_gram.clone(), self.options.damping)
        loss = [folded_loss(down_HI, statistics, scale) for scale in candidates]
        best = min(range(len(GRID)), key=lambda i: loss[i])
        if loss[best] >= (1 - self.options.min_gain) * loss[0]:
            return None, (0.0, 0.0)
        return candidates[best], GRID[best]

    def _round(self, weight_NK: Tensor, gram_KK: Tensor) -> GroupWeight:
        if self.options.feedback:
            codes, scale = _rounding.feedback(weight_NK, gram_KK)
        else:
            scale = _scales.search(weight_NK, gram_KK)
            codes = groups.round_to_codes(weight_NK, scale)
        if self.options.rounds:
            codes, scale = _rounding.refine(weight_NK, gram_KK, codes, scale, self.options.rounds, self.options.sweeps)
        return GroupWeight(codes, scale)

    def statistics_bytes(self, dimensions: Dimensions) -> int:
        h, i = dimensions.hidden, dimensions.expert_intermediate
        return 4 * (4 * h * h + 6 * 2 * i * h)


def exponents(x_K: Tensor, w_K: Tensor, a: float, b: float) -> Tensor:
    """scale_j = x_j^a / w_j^b, geometric middle 1, spread bounded; 1 for channels that are zero."""
    alive = (x_K > 0) & (w_K > 0)
    scale = torch.where(alive, x_K.clamp_min(1e-30) ** a / w_K.clamp_min(1e-30) ** b, torch.ones_like(x_K))
    logs = torch.log2(scale[alive]) if bool(alive.any()) else torch.zeros(1, device=x_K.device)
    middle = (logs.max() + logs.min()) / 2
    half = torch.log2(torch.tensor(LARGEST_SPREAD)).item() / 2
    return torch.where(alive, torch.exp2((torch.log2(scale) - middle).clamp(-half, half)), torch.ones_like(scale))


def folded_loss(weight_NK: Tensor, gram_KK: Tensor, scale_K: Tensor) -> float:
    """Output error of weight * scale, quantized and divided by scale again, under the unscaled Gram."""
    folded = weight_NK * scale_K
    folded_gram = gram_KK / scale_K[:, None] / scale_K
    chosen = _scales.search(folded, folded_gram, [0.6, 0.7, 0.8, 0.9, 1.0])
    error = groups.decode(groups.round_to_codes(folded, chosen), chosen) - folded
    return distance.gram_error(error, folded_gram)


METHOD = Awq
