"""What a terminal shows: the same words at any width, no colour codes where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from w4afp8.report import render_evaluation, render_validation
from w4afp8.validate.findings import ValidationReport


def shown(render: Any, content: Any, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    render(console, content)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_pipe_gets_no_colours(validation: ValidationReport) -> None:
    text = shown(render_validation, validation)
    assert "\x1b" not in text and "Proven" in text and "2.5 MB became 1.5 MB" in text
    assert "2 MTP" in text and "0.0150" in text
    assert "\x1b" in shown(render_validation, validation, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("width", [32, 60, 80, 200])
def test_any_width_holds_its_lines(validation: ValidationReport, evaluation: dict[str, Any], width: int) -> None:
    for render, content in ((render_validation, validation), (render_evaluation, evaluation)):
        text = shown(render, content, width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "index" in text.replace("\n", "") or "KL" in text


def test_problems_are_shown_and_counted(validation: ValidationReport) -> None:
    for i in range(14):
        validation.checks[1].blame(f"layer.{i}[bold]", "a", "b", "c")
    text = shown(render_validation, validation)
    assert "Do not use" in text and "- layer.9[bold]: found a, expected b; c" in text and "- and 4 more" in text
    assert "failed" in text


def test_what_was_not_tested_is_said(validation: ValidationReport) -> None:
    validation.checks[1].skip("no source given")
    text = shown(render_validation, validation)
    assert "not tested" in text and "no source given" in text and "Proven" not in text


def test_json_is_rendered_like_the_report_itself(validation: ValidationReport) -> None:
    assert shown(render_validation, validation) == shown(render_validation, validation.to_json())


def test_an_evaluation_shows_both_sides(evaluation: dict[str, Any]) -> None:
    text = shown(render_evaluation, evaluation)
    for word in ("0.0127 +- 5e-4", "20.760", "20.910", "+0.150", "93.20 %", "32 x 512 tokens", "token"):
        assert word in text, word
