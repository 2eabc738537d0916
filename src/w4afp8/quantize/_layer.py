"""One layer, streamed: attention, routing, the fold, then every expert read, quantized, written and forgotten.

The hidden states that go on are the source model's: every layer is calibrated on what it was trained on, no layer's
error leaks into the next one's statistics, and a layer can be redone alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w4afp8.families._spec import Dimensions, expert_matrices
from w4afp8.formats._spec import Weight
from w4afp8.model.decoder import Decoder
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.model.router import Routing, route
from w4afp8.numerics import fp8
from w4afp8.quantize._evidence import check, measure, require_finite
from w4afp8.quantize._fold import FoldedTensors, apply_fold
from w4afp8.quantize._gram import gram
from w4afp8.quantize._method import PRIOR_TOKENS, ExpertInputs, ExpertWeights, Fold, LayerPrior, LayerView, Method

RECORDED_TOKENS = 64  # inputs of each layer that are kept beside the checkpoint, for validate
# A starved expert is topped up to this many tokens: the survey's figure below which a Gram is mostly noise
# (quant-tools: A3, shrinkage stops mattering between 256 and 1024).
TOP_UP_TOKENS = 256

Put = Callable[[str, Weight], None]
Progress = Callable[[int, int], None]  # experts done, experts


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What a quantized layer leaves: evidence for the record, changed tensors, inputs for validate."""

    evidence: dict[str, Any]
    folded: FoldedTensors
    recorded: dict[str, Tensor]  # x, experts, weights of a few tokens


def quantize_layer(
    decoder: Decoder,
    layer: int,
    states_BSH: Tensor,
    method: Method,
    put: Put,
    *,
    headroom: float,
    progress: Progress,
) -> LayerResult:
    """Quantize the experts of `layer` and move the states on, in place.

    `put(weight name, weight)` is called once per expert matrix, in order.
    Raises: QuantizationError when a number that must be finite is not.
    """
    d, prefix = decoder.d, f"model.layers.{layer}."
    decoder.attend(layer, states_BSH)
    x_TH = decoder.mlp_input(layer, states_BSH)
    routing = decoder.route(layer, x_TH)
    require_finite(f"the inputs of layer {layer}'s experts", x_TH)
    require_finite(f"the routing of layer {layer}", routing.scores_TE)
    recorded = _record(x_TH, routing)
    prior = _prior(x_TH) if method.wants_prior else None
    view = _view(decoder, layer, x_TH, routing, prior)
    fold = method.fold(view)
    kept = fold is not None and fold.evidence["kept"]
    folded = apply_fold(decoder, layer, fold) if fold is not None and kept else FoldedTensors({})
    states_TH = states_BSH.view(-1, d.hidden)
    decoder.add_mlp(f"{prefix}mlp.shared_experts.", x_TH, states_TH)

    scale_H = folded.effective_scale
    if prior is not None and scale_H is not None:
        prior = prior.folded(scale_H)
    amax = {"gate_up": _amax(x_TH, scale_H), "down": 0.0}
    experts: list[dict[str, Any]] = []
    for e, weights, inputs in view.experts():
        names = expert_matrices(decoder.family, d, layer, e)
        for name, matrix in zip(names, (weights.gate_IH, weights.up_IH, weights.down_HI)):
            require_finite(name, matrix)
        _add_output(weights, inputs, states_TH, routing.tokens_of(e)[0])
        source = weights
        if scale_H is not None:
            weights = ExpertWeights(weights.gate_IH * scale_H, weights.up_IH * scale_H, weights.down_HI)
            inputs = ExpertInputs(inputs.x_nH.div_(scale_H), inputs.weight_n, inputs.routed, prior)
        result = method.quantize(weights, inputs)
        errors, down_amax = measure(source, inputs, result, scale_H, method.grid)
        amax["down"] = max(amax["down"], down_amax)
        for name, weight in zip(names, (result.gate, result.up, result.down)):
            check(name, weight)
            put(name, method.grid.weight(weight))
        experts.append({"expert": e, "tokens": inputs.routed, **errors, **result.evidence})
        progress(e + 1, d.experts)
    return LayerResult(_evidence(layer, d, routing, fold, experts, amax, headroom), folded, recorded)


def _prior(x_TH: Tensor) -> LayerPrior:
    rows = torch.linspace(0, len(x_TH) - 1, min(PRIOR_TOKENS, len(x_TH))).long()
    return LayerPrior(gram(x_TH), x_TH[rows])


def _view(decoder: Decoder, layer: int, x_TH: Tensor, routing: Routing, prior: LayerPrior | None) -> LayerView:
    d, prefix, weights = decoder.d, f"model.layers.{layer}.", decoder.weights

    def experts() -> Iterator[tuple[int, ExpertWeights, ExpertInputs]]:
        for e in range(d.experts):
            yield e, ExpertWeights(*decoder.expert(layer, e)), expert_inputs(x_TH, routing, e, prior)

    router = weights.matrix(f"{prefix}mlp.gate.weight")
    bias = weights.vector(f"{prefix}mlp.gate.e_score_correction_bias")

    def routing_moves(scale_H: Tensor) -> float:
        folded = (router * scale_H).to(torch.bfloat16).float()
        moved = 0
        for piece in pieces(len(x_TH), rows_per_piece(d.hidden, d.experts)):
            now = route(x_TH[piece] / scale_H, folded, bias, d).experts_TK.sort(-1).values
            moved += int((now != routing.experts_TK[piece].sort(-1).values).any(-1).sum())
        return moved / len(x_TH)

    shared = f"{prefix}mlp.shared_experts."
    return LayerView(
        dimensions=d,
        layer=layer,
        norm_H=weights.vector(f"{prefix}post_attention_layernorm.weight"),
        router_EH=router,
        shared=(weights.matrix(f"{shared}gate_proj.weight"), weights.matrix(f"{shared}up_proj.weight")),
        experts=experts,
        routing_moves=routing_moves,
    )


def expert_inputs(x_TH: Tensor, routing: Routing, expert: int, prior: LayerPrior | None = None) -> ExpertInputs:
    """The tokens of one expert, topped up with the best-scored ones that just missed it when they are few."""
    tokens, weight = routing.tokens_of(expert)
    missing = min(TOP_UP_TOKENS, len(x_TH)) - len(tokens)
    if missing > 0:
        score = routing.scores_TE[:, expert].clone()
        score[tokens] = float("-inf")
        more = score.topk(missing).indices
        typical = weight.median() if len(tokens) else routing.weights_TK.median()
        tokens = torch.cat((tokens, more))
        weight = torch.cat((weight, typical.expand(len(more))))
        return ExpertInputs(x_TH[tokens], weight, len(tokens) - len(more), prior)
    return ExpertInputs(x_TH[tokens], weight, len(tokens), prior)


def _add_output(weights: ExpertWeights, inputs: ExpertInputs, states_TH: Tensor, tokens: Tensor) -> None:
    for piece in pieces(inputs.routed, rows_per_piece(states_TH.shape[1], len(weights.gate_IH))):
        h = intermediate(inputs.x_nH[piece], weights.gate_IH, weights.up_IH)
        states_TH.index_add_(0, tokens[piece], (h @ weights.down_HI.T).mul_(inputs.weight_n[piece, None]))


def _amax(x_TH: Tensor, scale_H: Tensor | None) -> float:
    """Largest magnitude after the fold, found without a second tensor of that size."""
    lowest, highest = x_TH.aminmax(dim=0)
    largest_H = torch.maximum(-lowest, highest)
    return float((largest_H if scale_H is None else largest_H / scale_H).max())


def _record(x_TH: Tensor, routing: Routing) -> dict[str, Tensor]:
    """Evenly spaced tokens of the calibration, as validate feeds them to both checkpoints."""
    rows = torch.linspace(0, len(x_TH) - 1, min(RECORDED_TOKENS, len(x_TH))).long()
    return {
        "x": x_TH[rows].to(torch.bfloat16).cpu(),
        "experts": routing.experts_TK[rows].to(torch.int32).cpu(),
        "weights": routing.weights_TK[rows].cpu(),
    }


def static_scale(amax: float, headroom: float) -> float:
    """The static FP8 scale: headroom * amax / 448, rounded up to the bf16 that SGLang casts it to.

    e4m3 is floating point: a scale twice too large costs 0.3 % more rounding noise, one twice too small 37 times as
    much (quant-tools: 4.7), so the calibrated maximum must not sit on the edge.
    """
    wanted = max(headroom * amax / fp8.LARGEST, fp8.SMALLEST_SCALE)
    rounded = torch.tensor(wanted, dtype=torch.float32).to(torch.bfloat16)
    if rounded.item() < wanted:
        rounded = torch.nextafter(rounded, torch.tensor(float("inf"), dtype=torch.bfloat16))
    return rounded.item()


def _evidence(
    layer: int,
    d: Dimensions,
    routing: Routing,
    fold: Fold | None,
    experts: list[dict[str, Any]],
    amax: dict[str, float],
    headroom: float,
) -> dict[str, Any]:
    """The layer's line in the record; experts' errors are averaged over the tokens that meet them."""
    counts = routing.counts(d.experts).tolist()
    total = sum(counts) or 1

    def mean(kind: str) -> float:
        return float(sum(n * expert["down"][kind] for n, expert in zip(counts, experts)) / total)

    return {
        "layer": layer,
        "tokens_per_expert": counts,
        "error": {"rtn": mean("rtn"), "chosen": mean("chosen")},
        "fold": {"kept": False, "reason": "the method folds nothing here"} if fold is None else fold.evidence,
        "amax": amax,
        "input_scale": {site: static_scale(value, headroom) for site, value in amax.items()},
        "experts": experts,
    }
