"""The two reports in a terminal, of any width; rich leaves colours out where nobody would see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w4afp8.report.facts import Facts, Json, Said, plain
from w4afp8.report.scales import column, number, percent, size
from w4afp8.report.summary import checks, verdict

STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "idle": "dim"}
MOST_SHOWN = 10  # problems of a check; report.json has the rest
ROOM_FOR_PROMISES = 110  # columns
ROOM_FOR_GEMM = 70


def render_validation(console: Console, report: Said) -> None:
    """The verdict, every check, the problems in full, and each layer's numbers."""
    content = plain(report)
    facts = Facts(str(content.get("directory")), {}, {}, content, [])
    said = verdict(facts)
    console.print(Text.assemble((said.word, STYLES[said.tone]), f"  {facts.name}: {said.sentence}"))
    if content.get("bytes_source"):
        console.print(f"{size(content['bytes_source'])} became {size(content['bytes_out'])}")
    console.print()
    console.print(_checks(facts, console.width >= ROOM_FOR_PROMISES))
    for check in checks(facts):
        _problems(console, check)
    if content.get("layers"):
        console.print()
        console.print(_layers(content, console.width >= ROOM_FOR_GEMM))


def _checks(facts: Facts, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("check", "state", "", *(("promise",) if wide else ())):
        table.add_column(title, overflow="fold")
    for check in checks(facts):
        state = Text(check["state"], style=STYLES[check["tone"]])
        table.add_row(check["name"], state, check["note"], *((check["promise"],) if wide else ()))
    return table


def _problems(console: Console, check: Mapping[str, Any]) -> None:
    problems = check.get("problems") or []
    if not problems:
        return
    console.print()
    console.print(Text(f"{check['name']}: {len(problems) + check.get('more', 0)}", style="bold"))
    for problem in problems[:MOST_SHOWN]:
        text = f"- {problem['who']}: found {problem['found']}, expected {problem['expected']}; {problem['then']}"
        console.print(text, markup=False, highlight=False)
    hidden = len(problems) - MOST_SHOWN + check.get("more", 0)
    if hidden > 0:
        console.print(f"- and {hidden} more", markup=False)


def _layers(content: Json, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    titles = ("layer", "output error", "worst expert", *(("GEMM beyond rounding", "activations off") if wide else ()))
    for title in titles:
        table.add_column(title, justify="right")
    for layer in content["layers"]:
        found = [expert["output_error"] for expert in layer["experts"] if expert["output_error"] is not None]
        gemm = max((error for error in layer["gemm"].values() if error is not None), default=None)
        static = max(
            (site["error"] for site in layer["activation"].values() if site["error"] is not None), default=None
        )
        more = (_shown(gemm), "-" if static is None else percent(static)) if wide else ()
        name = f"{layer['layer']} MTP" if layer["mtp"] else str(layer["layer"])
        table.add_row(name, _shown(layer["output_error"]), _shown(max(found, default=None)), *more)
    return table


def render_evaluation(console: Console, report: Said) -> None:
    """One evaluation: what was lost, beside the source."""
    content = plain(report)
    head = f"{content['checkpoint']} beside {content['against']}: {content['sequences']} x {content['sequence']} tokens"
    console.print(
        f"{head} of {content['data']}, FP8 activations: {content['activations']}", highlight=False, markup=False
    )
    table = Table(box=None, pad_edge=False)
    for title in ("", "source", "checkpoint", "change"):
        table.add_column(title, justify="left" if not title else "right")
    change, error = content["nll"] - content["source_nll"], content["nll_change_standard_error"]
    kl = f"{number(content['kl'])} +- {number(content['kl_standard_error'])}"
    table.add_row("KL, nats per token", "", kl, "")
    table.add_row(
        "perplexity", f"{content['source_perplexity']:.3f}", f"{content['perplexity']:.3f}",
        f"{content['perplexity_change']:+.3f}",
    )  # fmt: skip
    table.add_row(
        "NLL, nats per token", f"{content['source_nll']:.4f}", f"{content['nll']:.4f}", f"{change:+.4f} +- {error:.4f}"
    )
    table.add_row("same first choice", "", percent(content["top1_agreement"], 2), "")
    console.print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else column(value)
