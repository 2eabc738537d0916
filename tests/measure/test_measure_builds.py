"""benchmarks/bench_gemm_builds.py: several builds on the same cells, a wrong one is never timed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_stand import ABOUT, MACHINE, Clock

from w4afp8.kernels import schedules
from w4afp8.measure import data
from w4afp8.measure.shapes import Gemm
from w4afp8.measure.stand import Stand

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "bench_gemm_builds.py"
GEMMS = {"moe": Gemm("moe", 128, 256, 4, 4, 2), "dense": Gemm("dense", 128, 256)}


class InProcess:
    """A worker whose server is here; everything passes through JSON."""

    def __init__(self, script: dict[str, Any], name: str, clock: Clock) -> None:
        stand = Stand(torch.device("cpu"), clock, lambda: MACHINE, clock.gemm, None, None, None, ABOUT)  # type: ignore[arg-type]
        self.name, self.server, self.said = name, script["Server"](stand), []

    def send(self, verb: str, *words: Any) -> None:
        self.said.append(json.dumps(getattr(self.server, verb)(*json.loads(json.dumps(words)))))

    def answer(self) -> Any:
        return json.loads(self.said.pop())

    def ask(self, verb: str, *words: Any) -> Any:
        self.send(verb, *words)
        return self.answer()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    loaded = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(loaded["measure"].__globals__, "GEMMS", GEMMS)
    monkeypatch.setattr(data, "BEYOND_L2_BYTES", 1e4)
    return loaded


@pytest.mark.parametrize("name", GEMMS)
def test_builds_are_compared_row_by_row(script: dict[str, Any], name: str) -> None:
    old = Clock(price=lambda kernel: 30.0 if kernel == "t16" else 40.0)
    new = Clock(price=lambda kernel: {"t16": 1.0, "t48c": 10.0}.get(kernel, 20.0))
    new.spoils = lambda row, out: out.mul_(1.1) if row.kernel == "t16" else None
    workers = [InProcess(script, "old", old), InProcess(script, "new", new)]
    found = {who: (cell, beside) for who, cell, beside in script["measure"](workers, name, 64, MACHINE, None)}
    assert (found["old"][0].schedule, found["old"][0].us) == ("t16/0", 30.0)
    cell, beside = found["new"]
    assert (cell.schedule, cell.us, beside["plain_us"], beside["cluster_us"]) == ("t48c/0", 10.0, 20.0, 10.0)
    assert list(beside["wrong"]) == ["t16/0"] and "t16/0" not in beside["looks"]


def test_every_cell_has_likely_rows_of_both_kinds(script: dict[str, Any]) -> None:
    for gemm in runpy.run_path(str(SCRIPT))["GEMMS"].values():
        for tokens in (1, 64, 1024, 8192):
            rows = tokens * max(1, gemm.top_k) * gemm.experts // gemm.routed or 1
            likely = script["likely"](gemm, rows)
            assert len(set(likely)) == len(likely) <= 2 * script["MOST"] + 1
            assert {r.cluster for r in likely} == {1, 2} or rows < 48 * gemm.experts
            problem = schedules.Problem(rows, gemm.experts, gemm.rows, gemm.cols)
            assert schedules.choose(problem) in likely
            assert script["likely"](gemm, rows, (1,)) == [r for r in likely if r.cluster == 1]


def test_cells_are_named(script: dict[str, Any]) -> None:
    assert script["parse_cells"](["moe:1,8", "dense:2"]) == [("moe", 1), ("moe", 8), ("dense", 2)]
    with pytest.raises(SystemExit, match=r"--cells odd:1: expected one of moe, dense"):
        script["parse_cells"](["odd:1"])
