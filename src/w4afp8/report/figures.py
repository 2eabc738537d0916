"""The page's drawings, each from facts to marks; None where the facts are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from w4afp8.report import svg
from w4afp8.report.facts import Facts, Json, errors
from w4afp8.report.scales import Axis, index_ticks, linear_axis, log_axis, number
from w4afp8.report.svg import Plot, Tick

LEVELS = 8  # of a heat map's colours
SITES = {"gate_up": "into gate and up", "down": "into down"}
MOST_COLUMNS = 10  # labels along x that still fit a phone
MOST_ROWS = 12


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Layers by experts, and what each colour means."""

    plot: Plot
    title: str
    bounds: list[str]  # LEVELS + 1 numbers


def error_by_layer(facts: Facts) -> Plot | None:
    """Each layer's error before (plain rounding) and after."""
    pairs = [(row["layer"], pair) for row in facts.layers if (pair := errors(row))]
    if not pairs:
        return None
    axis = log_axis(value for _, pair in pairs for value in pair)
    x = _columns(len(pairs))
    before = [(x[i], axis.down(pair[0])) for i, (_, pair) in enumerate(pairs)]
    after = [(x[i], axis.down(pair[1])) for i, (_, pair) in enumerate(pairs)]
    spans = [(x[i], axis.down(pair[0]), axis.down(pair[1])) for i, (_, pair) in enumerate(pairs)]
    marks = Markup("").join([svg.stems(spans, "quiet"), svg.dots(before, "before"), svg.dots(after, "after")])
    names = [facts.layer_name(layer) for layer, _ in pairs]
    label = "Relative output error per layer, plain rounding and chosen"
    return Plot(marks, index_ticks(names, MOST_COLUMNS), axis.ticks(), 240, label)


def error_maps(facts: Facts) -> list[HeatMap]:
    """Each expert's output error, before and after, in the same colours."""
    rows = {kind: _expert_rows(facts, kind) for kind in ("rtn", "chosen")}
    titles = {"rtn": "Plain rounding", "chosen": "This checkpoint"}
    if not any(value is not None for row in rows["rtn"] for value in row):
        rows = {"chosen": _validated_rows(facts)}
    values = [v for table in rows.values() for row in table for v in row if v is not None and v > 0]
    if not values:
        return []
    axis = Axis(min(values), max(values) * 1.0001, True)
    return [_heat_map(facts, table, axis, titles[kind]) for kind, table in rows.items()]


def token_map(facts: Facts) -> HeatMap | None:
    """Calibration tokens of each expert."""
    rows = [[float(c) for c in row.get("tokens_per_expert") or []] for row in facts.layers]
    values = [value for row in rows for value in row if value > 0]
    if not values:
        return None
    axis = Axis(min(values), max(values) * 1.0001, True)
    return _heat_map(facts, rows, axis, "Calibration tokens per expert")


def _heat_map(facts: Facts, rows: Sequence[Sequence[float | None]], axis: Axis, title: str) -> HeatMap:
    def level(value: float | None) -> int | None:
        return None if value is None or value <= 0 else min(LEVELS - 1, int(axis.place(value) * LEVELS))

    drawn = svg.cells([[level(value) for value in row] for row in rows], LEVELS)
    names = [facts.layer_name(row["layer"]) for row in facts.layers] or _validated_names(facts)
    width = max(map(len, rows), default=0)
    bounds = [number(axis.low * (axis.high / axis.low) ** (i / LEVELS)) for i in range(LEVELS + 1)]
    x = index_ticks([str(e) for e in range(width)], MOST_COLUMNS)
    height = max(96, min(560, 24 * len(rows) if len(rows) < 16 else 8 * len(rows)))
    return HeatMap(Plot(drawn, x, index_ticks(names, MOST_ROWS), height, title), title, bounds)


def _expert_rows(facts: Facts, kind: str) -> list[list[float | None]]:
    return [[_site(expert, kind) for expert in row.get("experts") or []] for row in facts.layers]


def _site(expert: Json, kind: str) -> float | None:
    value = (expert.get("down") or {}).get(kind)
    return float(value) if isinstance(value, int | float) else None


def _validated_rows(facts: Facts) -> list[list[float | None]]:
    return [
        [e.get("output_error") for e in row.get("experts", [])] for row in (facts.validation or {}).get("layers", [])
    ]


def _validated_names(facts: Facts) -> list[str]:
    return [facts.layer_name(row["layer"]) for row in (facts.validation or {}).get("layers", [])]


def activation_ranges(facts: Facts) -> dict[str, Plot]:
    """Per GEMM: the largest activation of each layer, and the range that its static scale covers."""
    return {title: plot for site, title in SITES.items() if (plot := _activation_range(facts, site))}


def _activation_range(facts: Facts, site: str) -> Plot | None:
    found: list[tuple[int, float, float]] = []
    for row in facts.layers:
        amax, scale = ((row.get(key) or {}).get(site) for key in ("amax", "input_scale"))
        if amax and scale:
            found.append((row["layer"], float(amax), 448 * float(scale)))
    if not found:
        for row in (facts.validation or {}).get("layers", []):
            numbers = (row.get("activation") or {}).get(site) or {}
            if numbers.get("amax") and numbers.get("range"):
                found.append((row["layer"], numbers["amax"], numbers["range"]))
    if not found:
        return None
    axis = log_axis(value for _, amax, covered in found for value in (amax, covered))
    x = _columns(len(found))
    spans = [(x[i], axis.down(amax), axis.down(covered)) for i, (_, amax, covered) in enumerate(found)]
    marks = Markup("").join(
        [
            svg.stems(spans, "quiet"),
            svg.dots([(place, low) for place, low, _ in spans], "after"),
            svg.dots([(place, high) for place, _, high in spans], "limit"),
        ]
    )
    names = [facts.layer_name(layer) for layer, _, _ in found]
    label = f"Largest activation {SITES[site]} and the range of the static scale, per layer"
    return Plot(marks, index_ticks(names, MOST_COLUMNS), axis.ticks(), 200, label)


def scale_histogram(facts: Facts) -> Plot | None:
    """How the group scales of all experts are spread, on a logarithmic axis."""
    histograms = (facts.validation or {}).get("histograms") or {}
    counts = histograms.get("scales") or []
    used = [i for i, count in enumerate(counts) if count]
    if not used:
        return None
    first, last = max(0, used[0] - 1), min(len(counts), used[-1] + 2)
    low, step = histograms["scale_log2_from"], histograms["scale_log2_step"]
    axis = linear_axis([math.log10(1 + count) for count in counts])
    heights = [axis.place(math.log10(1 + count)) for count in counts[first:last]]
    begin, end = ((low + step * i) * math.log10(2) for i in (first, last))
    across = Axis(10**begin, 10**end, True)
    x = [Tick(1 - tick.place, tick.text) for tick in across.ticks(7)]
    y = [
        Tick(axis.down(math.log10(1 + 10**e)), number(10.0**e)) for e in range(13) if math.log10(1 + 10**e) < axis.high
    ]
    return Plot(svg.bars(heights, "after", gap=0.1), x, y, 200, "Histogram of group scales")


def code_histogram(facts: Facts) -> Plot | None:
    """The share of each of the sixteen codes."""
    counts = ((facts.validation or {}).get("histograms") or {}).get("codes") or []
    total = sum(counts)
    if not total:
        return None
    shares = [count / total for count in counts]
    axis = linear_axis(shares)
    y = [Tick(tick.place, f"{100 * float(tick.text):.3g} %") for tick in axis.ticks(5)]
    x = [Tick((i + 0.5) / 16, str(i - 8)) for i in range(0, 16, 2)]
    return Plot(svg.bars([axis.place(share) for share in shares], "after"), x, y, 200, "Share of each code")


def seconds_by_layer(facts: Facts) -> Plot | None:
    """How long each layer took."""
    seconds = sorted(facts.seconds.items())
    if not seconds:
        return None
    axis = linear_axis([value for _, value in seconds])
    names = [facts.layer_name(layer) for layer, _ in seconds]
    marks = svg.bars([axis.place(value) for _, value in seconds], "after")
    return Plot(marks, index_ticks(names, MOST_COLUMNS), axis.ticks(5), 160, "Seconds per layer")


def _columns(count: int) -> list[float]:
    return [(i + 0.5) / count for i in range(count)]
