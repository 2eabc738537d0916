#!/usr/bin/env python3
"""Says what the records of the kernels' GEMMs and layers add up to, as docs/kernels/log.md shows it.

    python benchmarks/kernel_summary.py [--kernels 10] [--before 9]

Reads results/kernels-gemm-h200.jsonl, kernels-layer-h200.jsonl and, for peers timed in runs of their own,
kernels-peers-recorded.json.  A GEMM's bar, of every named cell with codes -8..7:

    bound by bytes, < 100 MB                    1.5 x a plain read of the same bytes
    fewer than 16 rows an expert, >= 100 MB     1.12 x the floor
    16 to 128 rows an expert                    1.3 x the floor
    more                                        1.45 x the floor

A layer's: 1.2 x the floor from 100 MB on, 1.45 in the middle, 1.7 beyond; the TP8 rank at one token 20 us.  Rows an
expert are of the experts that are hit; a dense layer is one expert.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GEMMS, LAYERS = "kernels-gemm-h200.jsonl", "kernels-layer-h200.jsonl"
RECORDED = "kernels-peers-recorded.json"  # peers in runs of their own
DECODE_BYTES = 100e6


@dataclass(frozen=True)
class Row:
    """One measured cell."""

    shape: str
    tokens: int
    expert_rows: float
    bytes: float
    bound: str
    floor_us: float
    read_us: float | None
    us: float
    peer_us: float | None
    schedule: str

    @property
    def x_floor(self) -> float:
        return self.us / self.floor_us

    @property
    def dense(self) -> bool:
        return self.shape.startswith("dense.")

    @property
    def name(self) -> str:
        return f"{self.shape} M={self.tokens}"


Rows = Mapping[tuple[str, int], Row]


def rows_of(records: Iterable[Mapping[str, Any]], kernels: int, kinds: Sequence[str] = ("gemm", "cell")) -> Rows:
    """The cells of one version, the last record of each; older records ("cell") have other keys."""
    found = {}
    for r in records:
        if r["record"] in kinds and r.get("kernels") == kernels and r.get("codes", "-8..7") == "-8..7":
            found[r["shape"], r["tokens"]] = Row(
                r["shape"], r["tokens"], r["rows"] / r["hit"] if r["hit"] else 0.0, r["bytes"], r["bound"],
                r["floor_us"], r.get("read_us"), r["us"], r.get("peer_us", r.get("humming_us")),
                r.get("schedule") or f"{r['kernel']}/{r['split']}",
            )  # fmt: skip
    return found


Test = Callable[[Row], bool]
GROUPS: tuple[tuple[str, Test], ...] = (
    ("all", lambda r: True),
    ("MoE, < 10 rows an expert, >= 100 MB", lambda r: not r.dense and r.expert_rows < 10 and r.bytes >= DECODE_BYTES),
    ("MoE, < 10 rows, < 100 MB", lambda r: not r.dense and r.expert_rows < 10 and r.bytes < DECODE_BYTES),
    ("MoE, 10 to 130 rows", lambda r: not r.dense and 10 <= r.expert_rows <= 130),
    ("MoE, > 130 rows", lambda r: not r.dense and r.expert_rows > 130),
    ("dense, M <= 128", lambda r: r.dense and r.tokens <= 128),
    ("dense, M >= 256", lambda r: r.dense and r.tokens > 128),
)


def group_table(rows: Rows, before: Rows, version: int) -> list[str]:
    """A line of Markdown a group that has cells; the version before in the cells that both have beside the peer."""
    heads = ["cells", "number", "x floor, geometric mean (range)", "Humming's", "Humming / ours", "faster in"]
    lines = ["| " + " | ".join([*heads, f"version {version}: Humming / its, faster in, of"]) + " |", "| --- " * 7 + "|"]
    for name, belongs in GROUPS:
        mine = [row for row in rows.values() if belongs(row)]
        if not mine:
            continue
        x = [row.x_floor for row in mine]
        cells = [name, str(len(mine)), f"{mean(x):.2f} ({min(x):.2f}..{max(x):.2f})"]
        beside = [row for row in mine if row.peer_us]
        theirs = [row.peer_us / row.floor_us for row in mine if row.peer_us]
        cells += [f"{mean(theirs):.2f}" if theirs else "-", *against(beside)]
        old = [before[r.shape, r.tokens] for r in beside if (r.shape, r.tokens) in before]
        old = [row for row in old if row.peer_us]
        cells += [f"{', '.join(against(old))}, {len(old)}" if old else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def against(rows: Sequence[Row]) -> tuple[str, str]:
    """The peer's time over ours, and where we are faster."""
    ratios = [row.peer_us / row.us for row in rows if row.peer_us]
    return (f"{mean(ratios):.2f}", str(sum(r > 1 for r in ratios))) if ratios else ("-", "-")


def mean(values: Sequence[float]) -> float:
    """Geometric."""
    return exp(sum(map(log, values)) / len(values))


def regime(row: Row) -> str:
    if row.expert_rows > 128:
        return "prefill"
    return "middle" if row.expert_rows >= 16 else "decode"


def gemm_bar(row: Row) -> tuple[str, float, float] | None:
    """The bar's name, what the cell reaches, what it should; None for a small one of a record without a read."""
    if row.bound == "bytes" and row.bytes < DECODE_BYTES:
        return ("bytes, < 100 MB, of a read", row.us / row.read_us, 1.5) if row.read_us else None
    if regime(row) == "decode" and row.bytes >= DECODE_BYTES:
        return "decode, >= 100 MB", row.x_floor, 1.12
    return ("prefill", row.x_floor, 1.45) if regime(row) == "prefill" else ("middle", row.x_floor, 1.3)


def layer_bar(row: Row) -> tuple[str, float, float] | None:
    """The same of a layer; None for a small one."""
    if (row.shape, row.tokens) == ("TP8", 1):
        return "TP8 M=1, us", row.us, 20.0
    if regime(row) == "decode":
        return ("layer, decode, >= 100 MB", row.x_floor, 1.2) if row.bytes >= DECODE_BYTES else None
    return ("layer, prefill", row.x_floor, 1.7) if regime(row) == "prefill" else ("layer, middle", row.x_floor, 1.45)


def bar_lines(rows: Rows, bar: Callable[[Row], tuple[str, float, float] | None]) -> list[str]:
    """How many cells reach each bar, and which do not, the worst first."""
    by_bar: dict[tuple[str, float], list[tuple[float, str]]] = {}
    for row in rows.values():
        if found := bar(row):
            name, reached, wanted = found
            by_bar.setdefault((name, wanted), []).append((reached, row.name))
    lines = []
    for (name, wanted), cells in sorted(by_bar.items()):
        missed = sorted((c for c in cells if c[0] > wanted), reverse=True)
        not_there = "; not " + ", ".join(f"{cell} {reached:.2f}" for reached, cell in missed) if missed else ""
        lines.append(f"{name} <= {wanted}: {len(cells) - len(missed)} of {len(cells)}{not_there}")
    return lines


def behind(rows: Rows) -> str:
    """The cells where the peer is faster."""
    slower = sorted((r.peer_us / r.us, r.name, r.schedule) for r in rows.values() if r.peer_us and r.peer_us < r.us)
    return f"behind the peer: {len(slower)}" + "".join(f"\n  {name} {x:.3f} ({how})" for x, name, how in slower)


def recorded_line(what: str, rows: Rows, peer: str = "sglang") -> str:
    """A peer that was timed in another run by the same method, over the cells that both have."""
    theirs = json.loads((RESULTS / RECORDED).read_text())[f"{peer}_us"]
    ratios = sorted(
        (theirs[shape][str(tokens)] / row.us, row.name)
        for (shape, tokens), row in rows.items()
        if str(tokens) in theirs.get(shape, {})
    )
    if not ratios:
        return f"{what}: {peer} was recorded in none of these cells"
    mean = exp(sum(log(ratio) for ratio, _ in ratios) / len(ratios))
    ends = " .. ".join(f"{name} {ratio:.2f}" for ratio, name in (ratios[0], ratios[-1]))
    return f"{what}: {peer} (recorded) / ours {mean:.2f} over {len(ratios)} cells ({ends})"


def layer_lines(rows: Rows) -> list[str]:
    """A line of Markdown a cell."""
    lines = ["| layer | M | way | us | x floor | Humming | Humming / ours |", "| --- " * 7 + "|"]
    for (shape, tokens), row in sorted(rows.items()):
        peer = (f"{row.peer_us:.1f}", f"{row.peer_us / row.us:.2f}") if row.peer_us else ("-", "-")
        words = [shape, str(tokens), row.schedule, f"{row.us:.1f}", f"{row.x_floor:.2f}", *peer]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def summary(gemms: Rows, before: Rows, version: int, layers: Rows) -> str:
    """Everything."""
    lines = []
    if gemms:
        lines += [*group_table(gemms, before, version), "", behind(gemms), "", *bar_lines(gemms, gemm_bar), ""]
        lines += [recorded_line("GEMMs", gemms), ""]
    if layers:
        ratio, faster = against([row for row in layers.values() if row.peer_us])
        lines += [*layer_lines(layers), "", f"layers: Humming / ours {ratio}, faster in {faster} of {len(layers)}"]
        lines += [behind(layers), "", *bar_lines(layers, layer_bar), "", recorded_line("layers", layers)]
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", type=int, help="the newest that is recorded unless it is said")
    parser.add_argument("--before", type=int, help="the version before unless it is said")
    options = parser.parse_args()
    gemms, layers = read(RESULTS / GEMMS), read(RESULTS / LAYERS)
    newest = options.kernels or max(record.get("kernels", 0) for record in gemms)
    earlier = options.before or newest - 1
    before = rows_of(gemms, earlier)
    print(summary(rows_of(gemms, newest), before, earlier, rows_of(layers, newest, ("moe",))))


if __name__ == "__main__":
    main()
