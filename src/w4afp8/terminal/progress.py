"""A run's events as lines: a live bar on a terminal, one plain line per layer anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from w4afp8.convert.resources import human


class RunProgress:
    """Listens to `pipeline.run`.  `layers` is how many units the run will finish."""

    def __init__(self, console: Console, units: int, quiet: bool = False) -> None:
        self._console, self._units, self._quiet = console, units, quiet
        self._began = time.monotonic()
        self._worked = 0.0
        self._finished = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(compact=True), console=console, transient=True,
            )  # fmt: skip

    def __enter__(self) -> RunProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self._advance(event)
        elif not self._quiet:
            line = self._line(event)
            if line:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _advance(self, event: dict[str, Any]) -> None:
        if self._bar is None:
            return
        size = event["of"] > 10_000  # bytes, not experts
        count = f"{human(event['done'])} of {human(event['of'])}" if size else f"{event['done']}/{event['of']}"
        if self._task is None or self._bar.tasks[-1].description != event["unit"]:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(event["unit"], total=event["of"], count=count)
        self._bar.update(self._task, completed=event["done"], count=count)

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
            ratio = event["error"]["chosen"] / event["error"]["rtn"] if event["error"]["rtn"] else 0.0
            parts.append(f"error {ratio:5.3f} of plain rounding's  ")
            parts.append(f"tokens/expert min {event['tokens_min']} med {event['tokens_median']}  ")
            parts.append("norm folded  " if event["fold"] else "")
        else:
            parts.append("copied  ")
        left = self._units - self._finished
        eta = f"  eta {clock(self._worked / self._finished * left)}" if left and "error" in event else ""
        return "".join(parts) + f"{event['seconds']:.1f} s{eta}"


def clock(seconds: float) -> str:
    """42 s, 6 m 10 s, 2 h 5 m."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} m {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} m"
