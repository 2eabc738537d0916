"""A run's events as lines: a live bar on a terminal, one plain line per layer anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console

from w4afp8.convert.resources import human
from w4afp8.terminal.bar import Bar


class RunProgress:
    """Listens to `pipeline.run`.  `layers` is how many units the run will finish."""

    def __init__(self, console: Console, units: int, quiet: bool = False) -> None:
        self._console, self._units, self._quiet = console, units, quiet
        self._began = time.monotonic()
        self._worked = 0.0
        self._finished = 0
        self._bar = Bar(console, quiet, one_line=True)

    def __enter__(self) -> RunProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self._advance(event)
        elif not self._quiet:
            line = self._line(event)
            if line:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _advance(self, event: dict[str, Any]) -> None:
        is_bytes = event["of"] > 10_000  # not experts
        count = f"{human(event['done'])} of {human(event['of'])}" if is_bytes else None
        self._bar.show(event["unit"], event["done"], event["of"], count)

    def _line(self, event: dict[str, Any]) -> str:
        match event["event"]:
            case "surveyed":
                return f"source     {human(event['bytes'])} read, every number is finite"
            case "covered":
                return f"coverage   every expert sees at least {event['tokens_min']} calibration tokens"
            case "resume":
                return "resume     an unfinished run was found and fits; going on after its last finished layer"
            case "unit":
                return self._unit_line(event)
            case "done":
                peak = f", peak memory {human(event['peak_rss_bytes'])}" if event["peak_rss_bytes"] else ""
                return f"done       {human(event['bytes'])} written in {clock(time.monotonic() - self._began)}{peak}"
        return ""

    def _unit_line(self, event: dict[str, Any]) -> str:
        self._finished += 1
        self._worked += event["seconds"]
        parts = [f"{event.get('unit', 'outside'):<10} " if event["layer"] is None else f"layer {event['layer']:>3}  "]
        if "error" in event:
            parts.append(f"error {_error(**event['error'])}  ")
            parts.append(f"tokens/expert min {event['tokens_min']} med {event['tokens_median']}  ")
            parts.append("norm folded  " if event["fold"] else "")
        else:
            parts.append("written  ")
        left = self._units - self._finished
        eta = f"  eta {clock(self._worked / self._finished * left)}" if left and "error" in event else ""
        return "".join(parts) + f"{event['seconds']:.1f} s{eta}"


def _error(rtn: float, chosen: float, **_: float) -> str:
    """The layer's relative output error, and what share of plain rounding's it is; plain rounding is all of it."""
    share = "" if chosen == rtn else f", {chosen / rtn:.0%} of plain rounding's" if rtn else ""
    return f"{chosen:.4f}{share}"


def clock(seconds: float) -> str:
    """42 s, 6 m 10 s, 2 h 5 m."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} m {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} m"
