"""What people see: one plain line per layer, a plan that adds up."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from w4afp8 import pipeline
from w4afp8.recipes._recipe import Recipe
from w4afp8.terminal.plan_view import plan_json, show_plan
from w4afp8.terminal.progress import RunProgress, clock
from w4afp8.terminal.steps import Steps


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=200, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


UNIT = {"event": "unit", "unit": "layer-003", "layer": 3, "seconds": 2.0, "error": {"rtn": 0.04, "chosen": 0.01},
        "tokens_min": 12, "tokens_median": 40, "fold": True}  # fmt: skip


def test_a_layer_is_one_plain_line_with_its_error_ratio_and_eta() -> None:
    console = plain_console()
    with RunProgress(console, units=4) as progress:
        progress(UNIT)
    (line,) = shown(console).splitlines()
    for words in (
        "layer   3",
        "error 0.0100, 25% of plain rounding's",
        "min 12 med 40",
        "norm folded",
        "2.0 s",
        "eta 6.0 s",
    ):
        assert words in line


def test_progress_inside_a_layer_is_for_terminals_only() -> None:
    console = plain_console()
    with RunProgress(console, units=4) as progress:
        progress({"event": "progress", "unit": "layer-003", "done": 1, "of": 16})
    assert shown(console) == ""


def test_quiet_is_quiet() -> None:
    console = plain_console()
    with RunProgress(console, units=4, quiet=True) as progress:
        progress(UNIT)
        progress({"event": "progress", "unit": "x", "done": 1, "of": 2})
    assert shown(console) == ""


def test_a_terminal_gets_a_bar_and_the_same_lines() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None, highlight=False)
    with RunProgress(console, units=4) as progress:
        for done in range(3):
            progress({"event": "progress", "unit": "source values", "done": done * 10**6, "of": 3 * 10**6})
        progress({"event": "progress", "unit": "layer-003", "done": 1, "of": 16})
        progress(UNIT)
    assert "layer   3" in shown(console)


@pytest.mark.parametrize(
    "event",
    [{"event": "surveyed", "bytes": 3_000_000}, {"event": "covered", "tokens_min": 3}, {"event": "resume"},
     {"event": "done", "bytes": 5, "peak_rss_bytes": 0}, {"event": "unit", "layer": None, "seconds": 0}],
)  # fmt: skip
def test_every_event_has_a_line(event: dict[str, Any]) -> None:
    console = plain_console()
    with RunProgress(console, units=2) as progress:
        progress(event)
    assert len(shown(console).splitlines()) == 1


def test_a_perfect_layer_divides_by_nothing() -> None:
    console = plain_console()
    with RunProgress(console, units=2) as progress:
        progress(UNIT | {"error": {"rtn": 0.0, "chosen": 0.0}})
        progress(UNIT | {"error": {"rtn": 0.04, "chosen": 0.04}})
    assert "error 0.0000  " in shown(console) and "error 0.0400  " in shown(console)
    assert "plain rounding" not in shown(console), "plain rounding is not compared with itself"


def test_a_log_shows_life_once_a_minute_and_a_terminal_a_bar() -> None:
    now = [0.0]
    log, screen = plain_console(), Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    for console, quiet in ((log, False), (screen, False)):
        now[0] = 0.0
        with Steps(console, quiet, clock=lambda: now[0]) as steps:
            for done in range(12):
                now[0] += 11.0
                steps("digests", done, 12)
    assert shown(log) == "digests 5 of 12\ndigests 11 of 12\n"
    assert "digests" in shown(screen) and "digests 5 of 12" not in shown(screen) and "11/12" in shown(screen)
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Steps(screen) as steps:
        steps.close()
        steps("weights", 1, 2)
    assert "weights" not in shown(screen), "drawn over somebody else's bars"
    quiet_log = plain_console()
    with Steps(quiet_log, quiet=True, clock=lambda: now[0]) as steps:
        now[0] += 100.0
        steps("digests", 1, 12)
    assert shown(quiet_log) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (42.3, "42 s"),
        (60, "1 m 0 s"),
        (370, "6 m 10 s"),
        (7500, "2 h 5 m"),
        (59.7, "1 m 0 s"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_plan_shows_what_json_says(
    toy: Callable[..., Path], small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = pipeline.prepare(toy(), small_recipe(), tmp_path / "out")
    found = plan_json(run.plan, run.needs, 256, 12.0)
    text = str(found)
    assert str(run.plan.total_bytes) in text and str(run.needs.disk) in text
    console = plain_console()
    show_plan(console, run.plan, run.needs, 256, 12.0)
    for words in ("routed expert", "deepseek_fp8", "sglang_w4afp8", "about 12 s", "256 tokens", "phase"):
        assert words in shown(console)
    quiet = plain_console()
    show_plan(quiet, run.plan, run.needs, 256)
    assert "probe" not in shown(quiet)
