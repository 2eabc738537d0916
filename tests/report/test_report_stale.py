"""A report that is made after a byte changed says so, and never carries the digests of every tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from w4afp8 import report
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import take_seal


def test_a_report_says_that_its_validation_is_stale(quantized_toy: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = quantized_toy[0], Path(shutil.copytree(quantized_toy[1], tmp_path / "out"))
    seal = take_seal(out)
    gate.write_verdict(out, validate(out, source), seal)
    said = json.loads(report.write(out).json.read_text())
    assert said["verdict"]["word"] == "Proven" and "seal" not in said["validation"]
    (out / "tokenizer.json").write_text("{}")
    paths = report.write(out)
    said = json.loads(paths.json.read_text())
    assert said["verdict"]["word"] == "Stale" and "tokenizer.json has" in said["verdict"]["sentence"]
    assert "Stale" in paths.html.read_text()
