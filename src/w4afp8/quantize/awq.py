"""AWQ on Gram statistics, then codes chosen together.

1. norm -> gate/up: one scale per channel for the whole layer, a power of two, so that norm and router stay exact.
2. up -> down: one scale per intermediate channel and expert, free of charge.
3. Group scales and codes under the expert's own Gram: rounded with feedback, then descended, scales refitted between.
4. `down` is fitted to what it will really be given: the rounded gate and up, their output rounded to FP8.

The folds follow AWQ (arXiv 2306.00978): scale_j = x_j^a / w_j^b, where x and w are the root mean squares of the
channel's inputs and weights.  A candidate's loss is measured, not modelled: the weights are rounded and the error is
taken under the Gram.  Every part was chosen by measurement (docs/numerics.md).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from w4afp8.families._spec import Dimensions
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.numerics import distance, fp8, groups
from w4afp8.quantize import _rounding, _scales
from w4afp8.quantize._fold import power_of_two
from w4afp8.quantize._gram import TINY, damp, effective_tokens, gram, shrink
from w4afp8.quantize._grid import Grid
from w4afp8.quantize._method import (
    PRIOR_TOKENS,
    ExpertInputs,
    ExpertResult,
    ExpertWeights,
    Fold,
    LayerView,
    Method,
)
from w4afp8.recipes._recipe import Strict

# (a, b) of scale_j = x_j^a / w_j^b.  (0, 0) is no fold at all and always among them.
GRID = ((0.0, 0.0), (0.0, 1.0), (0.0, 0.75), (0.25, 0.5), (0.5, 0.5))
LARGEST_SPREAD = 2.0**12  # between a fold's scales; beyond it activations leave e4m3's range


class Awq(Method):
    """AWQ folds, feedback and descent under the Gram; each part can be turned off."""

    wants_prior = True

    class Options(Strict):
        """What the method does, and how hard it tries."""

        fold_norm: bool = True
        fold_down: bool = True
        min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.02  # a fold must save this share of the loss
        max_routing_moves: Annotated[float, Field(ge=0, le=1)] = 0.0005  # share of tokens
        feedback: bool = True
        rounds: Annotated[int, Field(ge=0)] = 1  # of descent and refit
        sweeps: Annotated[int, Field(ge=1)] = 2  # of descent in each round
        correct_down: bool = True
        damping: Annotated[float, Field(gt=0)] = 0.1  # share of the mean diagonal
        # The layer's share of an expert's Gram is prior / (prior + sqrt(tokens / columns)).
        prior: Annotated[float, Field(ge=0)] = 2.0

    options: Options

    def fold(self, view: LayerView) -> Fold | None:
        if not self.options.fold_norm:
            return None
        mean_square = torch.zeros_like(view.norm_H)
        weight_square = torch.zeros_like(view.norm_H)
        for _, weights, inputs in view.experts():
            mean_square += inputs.x_nH.square().mean(0)
            weight_square += weights.gate_IH.square().mean(0) + weights.up_IH.square().mean(0)
        candidates = [power_of_two(exponents(mean_square.sqrt(), weight_square.sqrt(), a, b)) for a, b in GRID]
        loss = [0.0] * len(GRID)
        for _, weights, inputs in view.experts():
            statistics = self._regularize(gram(inputs.x_nH, inputs.weight_n), inputs)[0]
            both = torch.cat((weights.gate_IH, weights.up_IH))
            size = distance.gram_error(both, statistics)
            for i, scale in enumerate(candidates):
                loss[i] += folded_loss(both, statistics, scale, self.grid) / size if size else 0.0
        best = min(range(len(GRID)), key=lambda i: loss[i])
        gain = 1 - loss[best] / loss[0] if loss[0] else 0.0
        moves = view.routing_moves(candidates[best])
        kept = gain >= self.options.min_gain and moves <= self.options.max_routing_moves
        reason = "saves output error" if kept else (
            "saves too little" if gain < self.options.min_gain else "moves the routing of too many tokens"
        )  # fmt: skip
        a, b = GRID[best]
        evidence = {
            "kept": kept,
            "alpha": a,
            "beta": b,
            "gain": round(gain, 6),
            "routing_moves": moves,
            "reason": reason,
        }
        return Fold(candidates[best] if kept else torch.ones_like(view.norm_H), evidence)

    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        rows = len(weights.gate_IH)
        source_gram = self._source_down_gram(weights, inputs)
        fold_I, exponent = self._down_fold(weights.down_HI, source_gram)
        up_IH, down_HI = weights.up_IH, weights.down_HI
        if fold_I is not None:
            up_IH, down_HI = up_IH / fold_I[:, None], down_HI * fold_I
        rounded_nH = fp8.round_tokens(inputs.x_nH)
        wide = self._regularize(gram(rounded_nH, inputs.weight_n), inputs)[0]
        both = self._round(torch.cat((weights.gate_IH, up_IH)), wide)
        del wide
        gate = GroupWeight(both.codes_NK[:rows], both.scale_NG[:rows], self.grid.group)
        up = GroupWeight(both.codes_NK[rows:], both.scale_NG[rows:], self.grid.group)
        down_HI, narrow = self._down_target(weights.gate_IH, up_IH, down_HI, gate, up, inputs, rounded_nH)
        down = self._round(down_HI, narrow)
        return ExpertResult(gate, up, down, fold_I, {"fold_alpha": exponent})

    def _source_down_gram(self, weights: ExpertWeights, inputs: ExpertInputs) -> Tensor:
        total = torch.zeros(2 * [len(weights.gate_IH)], device=weights.gate_IH.device)
        for piece in pieces(len(inputs.x_nH), rows_per_piece(inputs.x_nH.shape[1], len(weights.gate_IH))):
            h = intermediate(inputs.x_nH[piece], weights.gate_IH, weights.up_IH)
            total += (h * inputs.weight_n[piece, None].square()).T @ h
        return total.div_(inputs.weight_n.square().sum().clamp_min(TINY))

    def _down_fold(self, down_HI: Tensor, gram_II: Tensor) -> tuple[Tensor | None, list[float] | None]:
        if not self.options.fold_down:
            return None, None
        x_I, w_I = gram_II.diagonal().sqrt(), down_HI.square().mean(0).sqrt()
        candidates = [exponents(x_I, w_I, a, b) for a, b in GRID]
        statistics = damp(gram_II.clone(), self.options.damping)
        loss = [folded_loss(down_HI, statistics, scale, self.grid) for scale in candidates]
        best = min(range(len(GRID)), key=lambda i: loss[i])
        if loss[best] > (1 - self.options.min_gain) * loss[0]:
            return None, None
        return candidates[best], list(GRID[best])

    def _down_target(
        self, gate_IH: Tensor, up_IH: Tensor, down_HI: Tensor, gate: GroupWeight, up: GroupWeight,
        inputs: ExpertInputs, rounded_nH: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The weights that give the source's output from the inputs that `down` will really see, and their Gram.

        The minimum over V of E|V h' - W h|^2 pulled to W by the regularization R: V = W + k W (C - G) (k G + R)^-1 with
        C = E[h h'^T], G = E[h' h'^T] and k the share of G that shrinking kept.
        """
        seen_gate, seen_up = gate.dequantize(), up.dequantize()
        width = len(gate_IH)
        gram_II, cross_II = (torch.zeros(width, width, device=gate_IH.device) for _ in range(2))
        for piece in pieces(len(inputs.x_nH), rows_per_piece(inputs.x_nH.shape[1], width)):
            seen = fp8.round_tokens(intermediate(rounded_nH[piece], seen_gate, seen_up))
            weighted = seen * inputs.weight_n[piece, None].square()
            gram_II += weighted.T @ seen
            if self.options.correct_down:
                cross_II += intermediate(inputs.x_nH[piece], gate_IH, up_IH).T @ weighted
        total = inputs.weight_n.square().sum().clamp_min(TINY)
        statistics, kept = self._regularize(gram_II / total, inputs, (seen_gate, seen_up))
        if self.options.correct_down:
            slope_HI = down_HI @ cross_II.sub_(gram_II).mul_(kept / total)
            down_HI = down_HI + torch.cholesky_solve(slope_HI.T, torch.linalg.cholesky(statistics)).T
        return down_HI.contiguous(), statistics

    def _regularize(
        self, gram_KK: Tensor, inputs: ExpertInputs, expert: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, float]:
        """Shrink toward the layer's statistics (run through the expert's gate and up for `down`), then damp.

        Returns the result and the share of the expert's own Gram in it.
        """
        kept = 1.0
        if inputs.prior is not None and self.options.prior:
            prior = inputs.prior.gram_HH if expert is None else gram(intermediate(inputs.prior.sample_mH, *expert))
            tokens = effective_tokens(inputs.weight_n)
            knowledge = (tokens / len(gram_KK)) ** 0.5
            kept = knowledge / (knowledge + self.options.prior)
            gram_KK = shrink(gram_KK, prior, kept)
        return damp(gram_KK, self.options.damping), kept

    def _round(self, weight_NK: Tensor, gram_KK: Tensor) -> GroupWeight:
        grid = self.grid
        if self.options.feedback:
            codes, scale = _rounding.feedback(weight_NK, gram_KK, grid)
        else:
            scale = _scales.search(weight_NK, gram_KK, grid)
            codes = grid.round(weight_NK, scale)
        if self.options.rounds:
            rounds, sweeps = self.options.rounds, self.options.sweeps
            codes, scale = _rounding.refine(weight_NK, gram_KK, codes, scale, rounds, sweeps, grid)
        return GroupWeight(codes, scale, grid.group)

    def statistics_bytes(self, dimensions: Dimensions, rows: int) -> int:
        h, i = dimensions.hidden, dimensions.expert_intermediate
        prior = 4 * (h * h + PRIOR_TOKENS * h)
        rounding_inputs = 13 * rows * h  # float32, its quotient, e4m3 and the result, as fp8.round_tokens makes them
        rounding_codes = 4 * rows * h + 4 * (4 * h * h + 6 * 2 * i * h)
        return prior + max(rounding_inputs, rounding_codes)


def exponents(x_K: Tensor, w_K: Tensor, a: float, b: float) -> Tensor:
    """scale_j = x_j^a / w_j^b, geometric middle 1, spread bounded; 1 for channels that are zero."""
    alive = (x_K > 0) & (w_K > 0)
    if not bool(alive.any()):
        return torch.ones_like(x_K)
    logs = a * torch.log2(x_K.clamp_min(TINY)) - b * torch.log2(w_K.clamp_min(TINY))
    middle = (logs[alive].max() + logs[alive].min()) / 2
    half = torch.log2(torch.tensor(LARGEST_SPREAD)).item() / 2
    return torch.where(alive, torch.exp2((logs - middle).clamp(-half, half)), torch.ones_like(x_K))


def folded_loss(weight_NK: Tensor, gram_KK: Tensor, scale_K: Tensor, grid: Grid) -> float:
    """Output error of weight * scale, rounded and divided by scale again, under the unscaled Gram."""
    folded = weight_NK * scale_K
    folded_gram = gram_KK / scale_K[:, None] / scale_K
    chosen = _scales.search(folded, folded_gram, grid, coarse=True)
    error = groups.decode(grid.round(folded, chosen), chosen, grid.group) - folded
    return distance.gram_error(error, folded_gram)


METHOD = Awq
