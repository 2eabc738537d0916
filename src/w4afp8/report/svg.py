"""Marks as SVG that stretches to any width; every word stands in HTML beside it, so that a phone can read it.

All coordinates are in 0..1 of the drawing area, y downwards.  Colours come from the page's CSS (classes and
currentColor), so light and dark are the page's business alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

UNITS = 1000  # of the viewBox: whole numbers keep the page small


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a place along an axis, 0..1 from the top or the left."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with the labels of its axes."""

    marks: Markup
    x: Sequence[Tick]
    y: Sequence[Tick]
    height: int = 220  # CSS pixels
    label: str = ""  # what a screen reader says

    @property
    def svg(self) -> Markup:
        return Markup(
            '<svg viewBox="0 0 {0} {0}" preserveAspectRatio="none" role="img" aria-label="{1}">{2}{3}</svg>'
        ).format(UNITS, self.label, self._grid(), self.marks)

    def _grid(self) -> Markup:
        lines = "".join(f"M0 {_units(tick.place)}H{UNITS}" for tick in self.y)
        return Markup('<path class="grid" d="{}"/>').format(lines) if lines else Markup("")


def _units(value: float) -> str:
    """Where 0..1 stands in the viewBox, with as few characters as it takes."""
    return f"{min(1.0, max(0.0, value)) * UNITS:.1f}".rstrip("0").rstrip(".")


def dots(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """Round dots of one class: zero-long lines with round caps stay round however the drawing is stretched."""
    path = "".join(f"M{_units(x)} {_units(y)}h0" for x, y in points)
    return Markup('<path class="dots {}" d="{}"/>').format(css, path)


def stems(spans: Sequence[tuple[float, float, float]], css: str) -> Markup:
    """Vertical lines from (x, y1) to (x, y2)."""
    path = "".join(f"M{_units(x)} {_units(a)}V{_units(b)}" for x, a, b in spans)
    return Markup('<path class="stems {}" d="{}"/>').format(css, path)


def bars(heights: Sequence[float], css: str, gap: float = 0.15) -> Markup:
    """Bars of equal width from the bottom up; heights in 0..1."""
    width = 1 / max(1, len(heights))
    path = "".join(
        f"M{_units((i + gap / 2) * width)} {UNITS}V{_units(1 - h)}H{_units((i + 1 - gap / 2) * width)}V{UNITS}z"
        for i, h in enumerate(heights)
        if h > 0
    )
    return Markup('<path class="area {}" d="{}"/>').format(css, path)


def cells(rows: Sequence[Sequence[int | None]], levels: int) -> Markup:
    """A heat map: one path per level, neighbours of one level in a row joined; None stays empty.

    256 experts x 58 layers take a quarter of a megabyte this way, and one element per level.
    """
    paths = [""] * levels
    height = 1 / max(1, len(rows))
    for r, row in enumerate(rows):
        width = 1 / max(1, len(row))
        top, bottom = _units(r * height), _units((r + 1) * height)
        begin = 0
        while begin < len(row):
            end = begin + 1
            while end < len(row) and row[end] == row[begin]:
                end += 1
            level = row[begin]
            if level is not None:
                paths[level] += (
                    f"M{_units(begin * width)} {top}H{_units(end * width)}V{bottom}H{_units(begin * width)}z"
                )
            begin = end
    drawn = (Markup('<path class="heat h{}" d="{}"/>').format(i, path) for i, path in enumerate(paths) if path)
    return Markup("").join(drawn)
