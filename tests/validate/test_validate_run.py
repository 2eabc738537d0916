"""The run as a whole: what is compared, what is said, in what order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w4afp8.errors import CheckpointError
from w4afp8.validate import Check, validate
from w4afp8.validate.sides import chosen_experts


def test_a_sample_proves_nothing(quantized: Path, miniature: Path) -> None:
    report = validate(quantized, miniature, sample=3)
    assert report.passed and not report.proven
    assert [[e.expert for e in layer.experts] for layer in report.layers] == [[0, 5, 10]] * 4


def test_the_report_is_json_and_names_no_path(quantized: Path, miniature: Path) -> None:
    text = json.dumps(validate(quantized, miniature, sample=1).to_json(), allow_nan=False)
    assert str(quantized.parent) not in text and str(miniature.parent) not in text
    content = json.loads(text)
    assert content["directory"] == "tiny-W4AFP8" and content["against"] == "tiny-dsv3"
    assert content["bytes_source"] > content["bytes_out"] > 0


def test_the_same_directory_gives_the_same_report(quantized: Path, miniature: Path) -> None:
    first, second = (validate(quantized, miniature, sample=1).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_progress_reaches_its_end(quantized: Path, miniature: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    validate(quantized, miniature, sample=1, on_progress=lambda *step: seen.append(step))
    for what in ("values", "carried", "experts"):
        steps = [(done, total) for name, done, total in seen if name == what]
        assert steps[-1][0] == steps[-1][1] > 0 and steps == sorted(steps)


def test_an_unsound_source_is_an_error_of_the_source(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        validate(quantized, tmp_path / "missing")


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        validate(tmp_path / "missing")


def test_a_sample_is_spread_over_all_experts():
    assert chosen_experts(256, 4) == [0, 64, 128, 192]
    assert chosen_experts(16, None) == list(range(16)) == chosen_experts(16, 99)


def test_a_problem_says_who_found_expected_next():
    check = Check("name", "promise")
    check.blame("w1", 3, 4, "do this")
    assert str(check.problems[0]) == "w1: found 3, expected 4; do this"
    assert not check.passed and Check("a", "b").passed and not Check("a", "b").skip("why").passed
