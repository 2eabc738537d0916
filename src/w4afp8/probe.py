"""How long will it take?  One expert of one layer, timed, times all of them.  Floor 6."""

from __future__ import annotations

import time

import torch

from w4afp8.model.feedforward import swiglu
from w4afp8.pipeline import Run, decoder_of
from w4afp8.quantize._method import ExpertInputs, ExpertWeights
from w4afp8.recipes._recipe import Survey

PROBE_SEQUENCES = 4


def estimate_seconds(run: Run) -> float:
    """Seconds of the whole run, from the first MoE layer's attention over a few sequences and one of its experts.

    The probe's hidden states are bare embeddings: their values are not the layer's, their cost is.
    """
    d, method = run.plan.dimensions, run.method
    decoder = decoder_of(run)
    layer = min(d.dense_layers, d.all_layers - 1)
    sequences = run.tokens_BS[:PROBE_SEQUENCES]
    share = len(run.tokens_BS) / len(sequences)
    with torch.inference_mode():
        states = decoder.embed(sequences)
        began = time.monotonic()
        decoder.attend(layer, states)
        attention = (time.monotonic() - began) * share
        if not d.is_moe(layer):
            return attention * d.all_layers
        x_TH = decoder.mlp_input(layer, states)
        rows = max(1, run.tokens_BS.numel() * d.experts_per_token // d.experts)
        x_nH = x_TH[torch.arange(rows) % len(x_TH)]
        began = time.monotonic()
        weights = ExpertWeights(*decoder.expert(layer, 0))
        reading = time.monotonic() - began
        began = time.monotonic()
        swiglu(x_nH, weights.gate_IH, weights.up_IH, weights.down_HI)
        forward = time.monotonic() - began
        began = time.monotonic()
        method.quantize(weights, ExpertInputs(x_nH, torch.ones(rows), rows))
        choosing = time.monotonic() - began
    experts = d.experts * (d.all_layers - d.dense_layers)
    layers = d.all_layers * attention
    working = layers + experts * (3 * reading + 4 * forward + choosing)
    surveying = layers + experts * (2 * reading + forward) if run.recipe.compute.survey is Survey.FORWARD else 0.0
    return working + surveying
