"""The three ways of `w4afp8 convert`: each prepares, says what it will do, runs, and returns what it did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from w4afp8 import conversion
from w4afp8.recipes._recipe import Resume
from w4afp8.relayout import back, plan, run
from w4afp8.terminal.interrupts import StopRequests
from w4afp8.terminal.progress import RunProgress


@dataclass(frozen=True)
class Screen:
    """Where a run speaks, from which directory to which."""

    console: Console
    errors: Console
    source: Path
    out: Path
    text: bool

    def head(self, before: str, after: str) -> None:
        if self.text:
            self.console.print(f"{self.source} ({before}) -> {self.out} ({after})", markup=False, soft_wrap=True)

    def progress(self, units: int) -> RunProgress:
        return RunProgress(self.console, units, quiet=not self.text)


def to_format(screen: Screen, name: str, shard_gb: float, jobs: int | None, resume: Resume) -> dict[str, Any]:
    """Another checkpoint format."""
    prepared = conversion.prepare(screen.source, name, screen.out, shard_gb, jobs)
    translation = prepared.translation
    screen.head(translation.source.name, name)
    with StopRequests(screen.errors) as stop, screen.progress(len(translation.plan.units)) as progress:
        found = conversion.run(prepared, resume=resume, listener=progress, stop=lambda: stop.asked)
    said = {key: found[key] for key in ("from", "to", "matrices", "proof")}
    return {"output": str(screen.out), "bytes": translation.plan.total_bytes, **said}


def to_layout(
    screen: Screen,
    name: str,
    tp: int,
    ep: int,
    tolerance: float,
    shard_gb: float,
    jobs: int | None,
    resume: Resume,
) -> dict[str, Any]:
    """A runtime layout, over tp x ep ranks."""
    order = plan.prepare(
        screen.source, name, screen.out, tp=tp, ep=ep, tolerance=tolerance, shard_gb=shard_gb, jobs=jobs
    )
    ranks = order.split.ranks
    screen.head(order.weight.name, f"{name}, {ranks} ranks" if ranks > 1 else name)
    with StopRequests(screen.errors) as stop, screen.progress(len(order.layers)) as progress:
        record = run.lay_out(order, resume=resume, listener=progress, stop=lambda: stop.asked)
    return {
        "output": str(screen.out), "bytes": order.needs.output, "from": order.weight.name, "layout": record.layout,
        "layout_version": record.version, "read_by": record.read_by, "tp": tp, "ep": ep, "sizes": record.sizes,
        "notes": record.notes, "canonical_sha256": record.canonical, "proof": run.PROOF,
    }  # fmt: skip


def to_canonical(screen: Screen, jobs: int | None, resume: Resume) -> dict[str, Any]:
    """Back to the checkpoint that was laid out."""
    laid, needs, jobs = back.prepare_back(screen.source, jobs)
    with laid:
        screen.head(laid.record.layout, laid.record.weight_format)
        with StopRequests(screen.errors) as stop, screen.progress(len(laid.record.shards)) as progress:
            back.restore(laid, needs, screen.out, jobs, resume=resume, listener=progress, stop=lambda: stop.asked)
    return {
        "output": str(screen.out), "bytes": needs.output, "from": laid.record.layout, "to": laid.record.weight_format,
        "canonical_sha256": laid.record.canonical, "proof": back.PROOF,
    }  # fmt: skip
