"""Routing by hand and against a slow reading of the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from w4afp8 import families
from w4afp8.families._spec import Dimensions
from w4afp8.model.router import route


@pytest.fixture
def sixteen(miniature_config: dict[str, Any]) -> Dimensions:
    """16 experts in 4 groups, 2 groups count, 4 experts per token, weights times 2.5."""
    return families.of(miniature_config).dimensions(miniature_config)


def slowly(scores: list[float], bias: list[float], d: Dimensions) -> dict[int, float]:
    """One token, in plain Python: expert -> weight."""
    size = d.experts // d.expert_groups
    choice = [s + b for s, b in zip(scores, bias)]
    groups = [choice[g * size : (g + 1) * size] for g in range(d.expert_groups)]
    value = [sum(sorted(group)[-2:]) for group in groups]
    kept = sorted(range(d.expert_groups), key=lambda g: value[g])[-d.groups_per_token :]
    allowed = [e for e in range(d.experts) if e // size in kept]
    chosen = sorted(allowed, key=lambda e: choice[e])[-d.experts_per_token :]
    total = sum(scores[e] for e in chosen) if d.normalize_weights else 1.0
    return {e: scores[e] / total * d.routed_scale for e in chosen}


@pytest.mark.parametrize("changes", [{}, {"normalize_weights": False}, {"expert_groups": 1, "groups_per_token": 1},
                                     {"expert_groups": 16, "groups_per_token": 5}, {"experts_per_token": 1},
                                     {"experts_per_token": 8}])  # fmt: skip
def test_routing_is_the_papers(sixteen: Dimensions, changes: dict[str, Any]) -> None:
    d = replace(sixteen, **changes)
    x, weight, bias = torch.randn(60, 256), torch.randn(16, 256) / 16, torch.randn(16) * 0.2
    routing = route(x, weight, bias, d)
    for t, scores in enumerate(torch.sigmoid(x @ weight.T).tolist()):
        expected = slowly(scores, bias.tolist(), d)
        found = dict(zip(routing.experts_TK[t].tolist(), routing.weights_TK[t].tolist()))
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_bias_chooses_but_does_not_weigh(sixteen: Dimensions) -> None:
    x, weight = torch.randn(20, 256), torch.randn(16, 256) / 16
    bias = torch.zeros(16)
    bias[[0, 1, 2, 3]] = 10.0
    routing = route(x, weight, bias, sixteen)
    assert torch.equal(routing.experts_TK.sort(-1).values, torch.arange(4).expand(20, 4))
    scores = torch.sigmoid(x @ weight.T).gather(1, routing.experts_TK)
    torch.testing.assert_close(routing.weights_TK, scores / scores.sum(-1, keepdim=True) * 2.5)


def test_every_choice_is_found_again_by_its_expert(sixteen: Dimensions) -> None:
    routing = route(torch.randn(50, 256), torch.randn(16, 256), torch.zeros(16), sixteen)
    counts = routing.counts(16)
    assert counts.sum() == 50 * 4
    seen = torch.zeros(50)
    for e in range(16):
        tokens, weight = routing.tokens_of(e)
        assert len(tokens) == counts[e]
        assert tokens.tolist() == sorted(set(tokens.tolist()))
        seen.index_add_(0, tokens, weight)
    torch.testing.assert_close(seen, torch.full((50,), 2.5))
