"""benchmarks/cost_model.py: how far its choice is from the fastest look, and what nobody looked at."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from w4afp8.kernels import schedules
from w4afp8.measure.shapes import NAMED

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def test_looks_at_what_it_chooses_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("cost_model")
    gemm = NAMED["R1"].gemms[0]
    problem = schedules.Problem(512, gemm.experts, gemm.rows, gemm.cols)
    runs = [row for row in schedules.ROWS if not row.refusals(problem)]
    row = min(runs, key=lambda row: schedules.cost_us(problem, row))
    chosen = f"{row.kernel}/{row.split_groups}"
    cell = {"shape": gemm.name, "tokens": 64, "rows": 512}
    looks = [{chosen: 12.0, "other/0": 10.0}, {chosen: 10.0, "other/0": 12.0}, {"other/0": 9.0}]
    lines = [{"record": "machine"}, *({**cell, "looks": look} for look in looks)]
    path = tmp_path / "looks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["cost_model.py", str(path), "--worst", "1"])
    script.main()
    said = capsys.readouterr().out
    assert "9.5 % slower than the fastest look, over 2 cells; 1 not looked at" in said  # the root of 1.2
    assert f"{chosen} chosen, other/0 fastest" in said and "1.20" in said and said.count("\n") == 2
    path.write_text(json.dumps(lines[-1]) + "\n")
    with pytest.raises(SystemExit, match="found no look at a schedule that the cost model chooses"):
        script.main()


def test_the_recorded_looks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("cost_model")
    found = script.choices(map(json.loads, script.LOOKS.read_text().splitlines()))
    assert len(found) > 200 and sum(choice.ratio is not None for choice in found) > 200
