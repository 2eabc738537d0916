"""What a validation says: checks, the problems they found, and the numbers of every layer and expert.

Errors named `..._error` are relative mean squared errors, |found - expected|^2 / |expected|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Progress = Callable[[str, int, int], None]  # (what, done, total)

MOST_PROBLEMS = 50  # of one check that are kept with words; the rest are counted


def _printable(said: object) -> str:
    """A name out of a hostile file may hold half a character, which no terminal and no file takes."""
    return str(said).encode(errors="backslashreplace").decode()


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: who, found, expected, and what to do next."""

    who: str
    found: str
    expected: str
    then: str

    def __str__(self) -> str:
        return f"{self.who}: found {self.found}, expected {self.expected}; {self.then}"


@dataclass(slots=True)
class Check:
    """One promise, how many things it was tested on, and where it is broken."""

    name: str
    promise: str
    examined: int = 0
    problems: list[Problem] = field(default_factory=list)
    more: int = 0  # problems beyond the ones kept
    skipped: str | None = None  # why it was not tested, though it could hide something
    idle: str | None = None  # why there was nothing to test

    @property
    def passed(self) -> bool:
        return not self.problems and self.skipped is None

    @property
    def failed(self) -> bool:
        return bool(self.problems)

    def blame(self, who: str, found: object, expected: object, then: str) -> None:
        """Add a problem; past `MOST_PROBLEMS` it is only counted."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(_printable(who), _printable(found), _printable(expected), then))
        else:
            self.more += 1

    def skip(self, why: str) -> Check:
        """Mark it untested."""
        self.skipped = why
        return self


@dataclass(frozen=True, slots=True)
class ExpertError:
    """One expert beside the source: its output under the recorded inputs, its weights with the folds undone."""

    expert: int
    tokens: int  # recorded tokens that are routed to it
    output_error: float
    weight_error: dict[str, float]  # gate_proj, up_proj, down_proj
    scale_misfit: dict[str, float]  # how far group scales stand from the ones that the codes ask for (rms)


@dataclass(slots=True)
class LayerNumbers:
    """One mixture-of-experts layer."""

    layer: int
    mtp: bool
    inputs: str  # "recorded", or "synthetic" when the directory holds none for this layer
    output_error: float | None = None  # of the routed sum over the experts examined
    routing_moved: float | None = None  # share of recorded tokens that meet other experts after a norm fold
    gemm: dict[str, float] = field(default_factory=dict)  # gate_up, down: worst relative Frobenius distance
    activation: dict[str, dict[str, float]] = field(default_factory=dict)  # site -> amax, range, clipped, error
    experts: list[ExpertError] = field(default_factory=list)
    fused: float | None = None  # of the fused layer's output; None where no recorded token meets an expert examined


@dataclass(slots=True)
class Histograms:
    """How codes and group scales are spread over the routed experts."""

    codes: list[int] = field(default_factory=lambda: [0] * 16)  # -8 .. 7
    scale_log2_from: float = -24.0
    scale_log2_step: float = 0.25
    scales: list[int] = field(default_factory=lambda: [0] * 112)


@dataclass(slots=True)
class ValidationReport:
    """The whole verdict; `to_json` is what report.json and the CLI print."""

    tool_version: str
    directory: str
    against: str | None
    format: str
    sample: int | None  # experts per layer that were compared and multiplied; None: all of them
    checks: list[Check] = field(default_factory=list)
    layers: list[LayerNumbers] = field(default_factory=list)
    histograms: Histograms = field(default_factory=Histograms)
    bytes_out: int = 0
    bytes_source: int | None = None
    proven_by: str = ""  # what multiplied the packed bytes: the sm_90a kernels on a GPU, or plain torch
    seconds: float = 0.0
    claim: str = ""  # what a proof proves, where it is not that every check holds beside `against`

    @property
    def passed(self) -> bool:
        """Nothing that was tested is broken."""
        return not any(check.failed for check in self.checks)

    @property
    def proven(self) -> bool:
        """Every promise was tested, on every expert, and holds."""
        return self.sample is None and all(check.passed for check in self.checks)

    @property
    def problems(self) -> list[Problem]:
        return [problem for check in self.checks for problem in check.problems]

    def check(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: a number that is not finite becomes null, its problem says what it was."""
        plain: dict[str, Any] = _finite({"passed": self.passed, "proven": self.proven, **asdict(self)})
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
