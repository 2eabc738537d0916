"""From numbers to places on an axis, and the round numbers to label it with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from w4afp8.report.svg import Tick

EVEN_STEPS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)  # between labelled layers or experts


@dataclass(frozen=True, slots=True)
class Axis:
    """low .. high on 0 .. 1, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return (math.log10(max(value, self.low)) - math.log10(self.low)) / (
                math.log10(self.high) - math.log10(self.low)
            )
        return (value - self.low) / (self.high - self.low)

    def down(self, value: float) -> float:
        """The place on a vertical axis, where 0 is the top."""
        return 1 - self.place(value)

    def ticks(self, most: int = 6) -> list[Tick]:
        """Labels for a vertical axis."""
        values = _log_steps(self.low, self.high, most) if self.log else _linear_steps(self.low, self.high, most)
        return [Tick(self.down(value), number(value)) for value in values]


def log_axis(values: Iterable[float], least_decades: float = 1.0) -> Axis:
    """A logarithmic axis around positive values, a little wider than they are."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Axis(0.1, 1.0, True)
    low, high = math.log10(min(positive)), math.log10(max(positive))
    margin = max(0.06 * (high - low), (least_decades - (high - low)) / 2, 0.04)
    return Axis(10 ** (low - margin), 10 ** (high + margin), True)


def linear_axis(values: Iterable[float]) -> Axis:
    """0 to a little above the largest value."""
    return Axis(0.0, max([*values, 0.0]) * 1.06 or 1.0)


def _log_steps(low: float, high: float, most: int) -> list[float]:
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        steps = [
            m * 10.0**e
            for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for m in mantissas
            if low <= m * 10.0**e <= high
        ]
        if len(steps) <= most:
            return steps
    return steps[:: -(-len(steps) // most)]


def _linear_steps(low: float, high: float, most: int) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def index_ticks(labels: Sequence[str], most: int) -> list[Tick]:
    """At most `most` labels of equally wide columns (or rows), evenly spaced from the first."""
    count = len(labels)
    step = next((s for s in EVEN_STEPS if count <= s * most), max(1, count // most))
    return [Tick((i + 0.5) / count, labels[i]) for i in range(0, count, step)]


def number(value: float) -> str:
    """Three digits that matter: 0.034, 1.2 k, 4.7e-6."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e4:
        for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.3g} {name}"
    if size >= 1e3:
        return f"{value:,.0f}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def column(value: float) -> str:
    """Three digits, zeros kept, so that a column of them lines up."""
    return f"{value:#.3g}" if 1e-3 <= abs(value) < 1e3 else number(value)


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks and the Hub count them."""
    if count is None:
        return "unknown"
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count / unit < 1000 else f"{count / unit:.0f} {name}"
    return f"{count:.0f} bytes"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
