"""The plan as people read it, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from w4afp8.convert.plan import Plan
from w4afp8.convert.resources import Needs, human
from w4afp8.terminal.progress import clock


def plan_json(plan: Plan, needs: Needs, tokens: int, seconds: float | None) -> dict[str, Any]:
    """Everything the plan decided, as plain data."""
    return {
        "family": plan.family.name,
        "format": plan.target.name,
        "mtp": plan.mtp.value if plan.dimensions.mtp_layers else None,
        "layers": plan.dimensions.all_layers,
        "experts_per_layer": plan.dimensions.experts,
        "roles": [
            {"role": r.role, "tensors": r.tensors, "bytes_in": r.bytes_in, "bytes_out": r.bytes_out,
             "from": r.source_format, "to": r.output_format}
            for r in plan.roles
        ],
        "bytes_in": sum(r.bytes_in for r in plan.roles),
        "bytes_out": plan.total_bytes,
        "disk_bytes": needs.disk,
        "peak_memory_bytes": needs.peak,
        "peak_phase": needs.peak_phase,
        "memory_phases": needs.phases,
        "calibration_tokens": tokens,
        "estimated_seconds": seconds,
    }  # fmt: skip


def show_plan(console: Console, plan: Plan, needs: Needs, tokens: int, seconds: float | None = None) -> None:
    """The table by class, then what the run will take."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (("what", False), ("tensors", True), ("in", True), ("out", True), ("format", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "format")
    for r in plan.roles:
        changed = r.source_format if r.source_format == r.output_format else f"{r.source_format} -> {r.output_format}"
        table.add_row(r.role, f"{r.tensors:,}", human(r.bytes_in), human(r.bytes_out), changed)
    scales = sum(s.span_bytes for s in plan.input_scales)
    table.add_row("activation scale", f"{len(plan.input_scales):,}", "", human(scales), "static FP8, float32")
    table.add_row("all", "", human(sum(r.bytes_in for r in plan.roles)), human(plan.total_bytes), "", style="bold")
    console.print(table)
    d = plan.dimensions
    lines = [
        f"layers       {d.layers}, {d.dense_layers} dense; {d.experts} experts, {d.experts_per_token} per token",
        f"mtp          {_mtp(plan)}",
        f"calibration  {tokens:,} tokens",
        f"disk         {human(needs.disk)} (hidden states between layers included)",
        f"memory       {human(needs.peak)} at its peak, in the phase '{needs.peak_phase}'",
    ]
    if seconds is not None:
        lines.append(f"time         about {clock(seconds)}, from a probe of one layer")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _mtp(plan: Plan) -> str:
    if plan.mtp.value == "drop":
        return "dropped; config.json says so"
    if not plan.dimensions.mtp_layers:
        return "none in this checkpoint"
    return {"quantize": "kept, its experts quantized as " + plan.target.name + " requires", "native": "kept as it is"}[
        plan.mtp.value
    ]
