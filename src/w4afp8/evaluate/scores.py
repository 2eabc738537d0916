"""How far one model's predictions stand from another's.  Letters: S positions, V vocabulary."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from w4afp8.numerics.distance import kl_divergence, negative_log_likelihood


@dataclass(slots=True)
class Scores:
    """Of one checkpoint beside the source, a number per sequence."""

    kl: list[float] = field(default_factory=list)  # mean over the sequence's tokens, nats
    nll: list[float] = field(default_factory=list)
    source_nll: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)  # share of positions with the same most likely token

    def add(self, source_SV: Tensor, other_SV: Tensor, tokens_S: Tensor) -> None:
        """One sequence's logits from both sides."""
        self.kl.append(float(kl_divergence(source_SV, other_SV).double().mean()))
        self.source_nll.append(float(negative_log_likelihood(source_SV[:-1], tokens_S[1:]).double().mean()))
        self.nll.append(float(negative_log_likelihood(other_SV[:-1], tokens_S[1:]).double().mean()))
        self.top1.append(float((source_SV.argmax(-1) == other_SV.argmax(-1)).double().mean()))


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One checkpoint's predictions beside the source's, on one text."""

    checkpoint: str
    against: str
    data: str
    sequences: int
    sequence: int
    activations: str
    kl: float  # mean KL(source || checkpoint) per token, nats
    kl_standard_error: float  # over sequences
    top1_agreement: float
    source_nll: float
    nll: float
    source_perplexity: float
    perplexity: float
    perplexity_change: float
    nll_change_standard_error: float
    per_sequence: dict[str, list[float]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(
    scores: Scores, *, checkpoint: str, against: str, data: str, sequence: int, activations: str, seconds: float
) -> EvaluationReport:
    """Means over sequences, with the standard error that their spread implies."""
    source_nll, nll = fmean(scores.source_nll), fmean(scores.nll)
    changes = [after - before for after, before in zip(scores.nll, scores.source_nll, strict=True)]
    return EvaluationReport(
        checkpoint=checkpoint,
        against=against,
        data=data,
        sequences=len(scores.kl),
        sequence=sequence,
        activations=activations,
        kl=fmean(scores.kl),
        kl_standard_error=_standard_error(scores.kl),
        top1_agreement=fmean(scores.top1),
        source_nll=source_nll,
        nll=nll,
        source_perplexity=math.exp(source_nll),
        perplexity=math.exp(nll),
        perplexity_change=math.exp(nll) - math.exp(source_nll),
        nll_change_standard_error=_standard_error(changes),
        per_sequence={name: [round(v, 7) for v in values] for name, values in asdict(scores).items()},
        seconds=round(seconds, 3),
    )


def _standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
