"""A whole layer: who sees which tokens, the static scale, the coverage of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8 import families, quantize
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.errors import CalibrationError
from w4afp8.families._inventory import take_inventory
from w4afp8.formats._spec import GroupWeight
from w4afp8.model.decoder import Decoder
from w4afp8.model.router import Routing
from w4afp8.model.weights import Weights
from w4afp8.numerics import groups
from w4afp8.quantize import _layer
from w4afp8.quantize._coverage import check_coverage, count_tokens
from w4afp8.quantize._method import Fold, LayerView
from w4afp8.quantize.rtn import RoundToNearest
from w4afp8.recipes._recipe import MethodChoice


def open_decoder(folder: Path) -> Decoder:
    reader = CheckpointReader(folder)
    family = families.of(reader.config)
    d = family.dimensions(reader.config)
    return Decoder(family, d, Weights(reader, take_inventory(family, d, reader.specs)))


def routing(tokens: int, experts: int, chosen: list[int]) -> Routing:
    """Every token goes to the same experts."""
    k = len(chosen)
    return Routing(torch.tensor([chosen]).expand(tokens, k), torch.rand(tokens, k) + 0.1, torch.rand(tokens, experts))


def test_a_busy_expert_sees_its_own_tokens_only() -> None:
    x, route = torch.randn(600, 8), routing(600, 4, [1, 2])
    found = _layer.expert_inputs(x, route, 1)
    assert found.routed == 600 and torch.equal(found.x_nH, x)
    assert torch.equal(found.weight_n, route.weights_TK[:, 0])


@pytest.mark.parametrize("own", [0, 1, 5, 255])
def test_a_starved_expert_is_topped_up_with_those_that_just_missed_it(own: int) -> None:
    tokens, target = 400, _layer.TOP_UP_TOKENS
    x = torch.arange(tokens).float()[:, None].expand(tokens, 3)
    experts = torch.zeros(tokens, 1, dtype=torch.int64)
    experts[:own] = 1
    scores = torch.rand(tokens, 2)
    route = Routing(experts, torch.rand(tokens, 1) + 0.1, scores)
    found = _layer.expert_inputs(x, route, 1)
    assert found.routed == own
    assert len(found.x_nH) == len(found.weight_n) == target
    seen = found.x_nH[:, 0].long().tolist()
    assert seen[:own] == list(range(own))
    best = sorted(range(own, tokens), key=lambda t: -scores[t, 1].item())[: target - own]
    assert sorted(seen[own:]) == sorted(best)
    assert (found.weight_n > 0).all()


def test_few_tokens_are_no_reason_to_invent_any() -> None:
    found = _layer.expert_inputs(torch.randn(10, 4), routing(10, 4, [0]), 3)
    assert found.routed == 0 and len(found.x_nH) == 10


@given(st.floats(0, 1e30), st.floats(1, 16))
def test_a_static_scale_is_a_bf16_that_holds_what_it_must(amax: float, headroom: float) -> None:
    scale = _layer.static_scale(amax, headroom)
    assert scale > 0
    assert torch.tensor(scale).bfloat16().item() == scale
    assert scale >= headroom * amax / 448 * (1 - 1e-6)
    assert scale <= max(headroom * amax / 448, 1e-10) * (1 + 2**-7)


@pytest.mark.parametrize("method", quantize.names())
def test_a_layer_puts_every_matrix_once_in_order_and_moves_the_states_as_the_source_does(
    toy: Callable[..., Path], method: str
) -> None:
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (4, 64))
    put: list[tuple[str, GroupWeight]] = []
    with torch.inference_mode():
        states = decoder.embed(tokens)
        decoder.step(0, states)
        source = states.clone()
        decoder.step(1, source)
        seen: list[tuple[int, int]] = []
        result = _layer.quantize_layer(
            decoder, 1, states, quantize.make(MethodChoice(name=method)),
            lambda name, weight: put.append((name, weight)), headroom=2.0, progress=lambda *a: seen.append(a),
        )  # fmt: skip
    names = [f"model.layers.1.mlp.experts.{e}.{p}_proj.weight" for e in range(4) for p in ("gate", "up", "down")]
    assert [name for name, _ in put] == names
    assert seen == [(e + 1, 4) for e in range(4)]
    torch.testing.assert_close(states, source, rtol=1e-4, atol=1e-4)
    evidence = result.evidence
    assert evidence["layer"] == 1 and sum(evidence["tokens_per_expert"]) == 4 * 64 * 2
    assert 0 < evidence["error"]["chosen"] <= evidence["error"]["rtn"] * 1.001
    assert len(evidence["experts"]) == 4
    assert {site: evidence["input_scale"][site] >= 2 * evidence["amax"][site] / 448 * (1 - 1e-6)
            for site in ("gate_up", "down")} == {"gate_up": True, "down": True}  # fmt: skip
    for key, tensor in result.recorded.items():
        assert len(tensor) == 64, key


class Forced(RoundToNearest):
    """Plain rounding after a fold that nobody asked for."""

    def fold(self, view: LayerView) -> Fold:
        scale = torch.exp2((torch.arange(len(view.norm_H)) % 5 - 2).float())
        assert view.routing_moves(scale) == 0.0, "a power of two moves no routing"
        return Fold(scale, {"kept": True})


def test_the_folded_layer_is_the_source_layer(toy: Callable[..., Path]) -> None:
    """Experts carry the fold that the norm lost, and the states go on as if there were none."""
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (4, 64))
    put: dict[str, GroupWeight] = {}
    with torch.inference_mode():
        states = decoder.embed(tokens)
        decoder.step(0, states)
        source_states = states.clone()
        decoder.step(1, source_states)
        result = _layer.quantize_layer(
            decoder,
            1,
            states,
            Forced(RoundToNearest.Options()),
            put.__setitem__,
            headroom=1.0,
            progress=lambda *a: None,
        )
    torch.testing.assert_close(states, source_states, rtol=1e-4, atol=1e-4)
    scale = result.folded.effective_scale
    assert scale is not None and len(scale.unique()) == 5
    assert "model.layers.1.post_attention_layernorm.weight" in result.folded.tensors
    for name, weight in put.items():
        source: Tensor = decoder.weights.matrix(name)
        found = weight.dequantize() if "down_proj" in name else weight.dequantize() / scale
        step = groups.expand(weight.scale_NG) if "down_proj" in name else groups.expand(weight.scale_NG) / scale
        assert ((found - source).abs() <= 0.54 * step).all(), f"{name} is not its source"


def test_coverage_counts_what_a_run_will_see(toy: Callable[..., Path]) -> None:
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (2, 32))
    steps: list[tuple[int, int]] = []
    with torch.inference_mode():
        counts = count_tokens(decoder, tokens, lambda *a: steps.append(a))
        states = decoder.embed(tokens)
        decoder.step(0, states)
        first = decoder.step(1, states)
    assert first is not None
    assert counts.keys() == {1, 2, 3}
    assert counts[1] == first.counts(4).tolist()
    assert [sum(c) for c in counts.values()] == [128, 128, 2 * 31 * 2]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("counts", "least", "says"),
    [
        ({3: [5, 0, 7]}, 1, "layer 3: 1 of 3 experts saw fewer than 1 tokens: expert 1 saw 0"),
        ({3: [5, 4, 7]}, 5, "layer 3: 1 of 3 experts saw fewer than 5 tokens: expert 1 saw 4"),
        ({1: [0] * 9, 2: [1]}, 1, r"layer 1: 9 of 9 experts .*expert 5 saw 0 \.\.\."),
        ({1: [0], 2: [0]}, 1, "2 problems"),
    ],
)
def test_cold_experts_are_named_unless_they_are_allowed(counts: dict[int, list[int]], least: int, says: str) -> None:
    with pytest.raises(CalibrationError, match=says) as caught:
        check_coverage(counts, least, allow_cold=False)
    assert "--allow-cold-experts" in str(caught.value)
    check_coverage(counts, least, allow_cold=True)
    check_coverage(counts, 0, allow_cold=False)
