"""Scores by hand."""

from __future__ import annotations

import math

import pytest
import torch

from w4afp8.evaluate.scores import Scores, summarize

NAMES = {"checkpoint": "a", "against": "b", "data": "c", "sequence": 2, "activations": "none", "seconds": 0.0}


def test_two_words_by_hand():
    scores = Scores()
    source = torch.tensor([[0.0, 0.0], [0.0, 0.0]])  # 1/2 and 1/2
    other = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # 3/4 and 1/4 at the first position
    scores.add(source, other, torch.tensor([0, 1]))
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert scores.kl == [pytest.approx(first / 2, rel=1e-6)]
    assert scores.source_nll == [pytest.approx(math.log(2), rel=1e-6)], "the second token, from the first position"
    assert scores.nll == [pytest.approx(math.log(4), rel=1e-6)]


def test_the_standard_error_is_over_sequences():
    scores = Scores(kl=[0.1, 0.3], nll=[2.0, 2.0], source_nll=[2.0, 1.8], top1=[1.0, 0.5])
    report = summarize(scores, **NAMES)
    assert report.kl == pytest.approx(0.2)
    assert report.kl_standard_error == pytest.approx(math.sqrt(0.02) / math.sqrt(2))
    assert report.nll_change_standard_error == pytest.approx(0.1)
    assert report.top1_agreement == 0.75
    assert report.perplexity_change == pytest.approx(math.exp(2.0) - math.exp(1.9))


def test_one_sequence_has_no_standard_error():
    report = summarize(Scores(kl=[0.1], nll=[2.0], source_nll=[2.0], top1=[1.0]), **NAMES)
    assert report.kl_standard_error == 0.0
