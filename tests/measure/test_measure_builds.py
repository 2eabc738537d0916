"""benchmarks/bench_gemm_builds.py: several builds on the same cells, a wrong one is never timed, none ends the run."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fake_stand import ABOUT, MACHINE, Clock, InProcess

from w4afp8.kernels import layout, schedules
from w4afp8.measure import data, shapes
from w4afp8.measure.shapes import Gemm
from w4afp8.measure.stand import Stand

PAIR = next(row.kernel for row in schedules.ROWS if row.cluster == 2)
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
GEMMS = {"moe": Gemm("moe", 128, 256, 4, 4, 2), "dense": Gemm("dense", 128, 256)}


def in_process(script: ModuleType, name: str, clock: Clock) -> InProcess:
    stand = Stand(torch.device("cpu"), clock, lambda: MACHINE, clock.gemm, None, None, None, ABOUT)  # type: ignore[arg-type]
    return InProcess(name, sys.modules["gemm_server"].Server(stand))


# A server in a process of its own: fails at 2 tokens, hangs at 3, ends at 4, prints.
STUB = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from worker import serve

class Server:
    def machine(self):
        return {{"read_16MiB_us": 5.0, "read_4096MiB_us": 900.0, "fp8_flop_us": 1.5e9, "device": "a stub"}}
    def cell(self, name, tokens, least):
        os.system("echo no answer")
        if tokens == 2:
            raise RuntimeError("out of luck")
        if tokens == 3:
            time.sleep(60)
        if tokens == 4:
            os._exit(1)
        return {{"rows": 64, "hit": 1, "bytes": 1e6, "flops": 1e9}}
    def look(self, names):
        return {{"right": dict.fromkeys(names, 1.0), "wrong": {{}}}}
    turns = {{}}
    def turn(self, name):
        self.turns[name] = self.turns.get(name, 0) + 1
        return self.turns[name] % 4
    def time(self, name):
        return [9.0, 1.0, 2.5, 1.5][self.turn(name)], 0.1
    def peer(self, name, tokens):
        print("chatty")
        us = [9.0, 1.0, 3.5, 2.5][self.turn("peer")]
        return {{"name": "other", "us": us, "spread_us": us / 10, "how": f"tile {{us}}"}}

serve(Server())
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    loaded = importlib.import_module("bench_gemm_builds")
    monkeypatch.setattr(data, "BEYOND_L2_BYTES", 1e4)
    return loaded


@pytest.fixture
def small(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with GEMMs that a CPU multiplies."""
    for module in (script, sys.modules["gemm_server"]):
        monkeypatch.setattr(module, "GEMMS", GEMMS)
    monkeypatch.setattr(script, "NEAR", 1e3)  # so small a GEMM is nothing for a pair
    return script


@pytest.mark.parametrize("name", GEMMS)
@pytest.mark.parametrize("least", [-8, -7])
def test_builds_are_compared_row_by_row(small: ModuleType, name: str, least: int) -> None:
    best = small.likely(GEMMS[name], 64)[0].kernel
    old = Clock(price=lambda kernel: 30.0 if kernel == best else 40.0)
    new = Clock(price=lambda kernel: {best: 1.0, PAIR: 10.0}.get(kernel, 10.4))
    new.spoils = lambda row, out: out.mul_(1.1) if row.kernel == best else None
    workers = [in_process(small, "old", old), in_process(small, "new", new)]
    found = {w: (cell, beside) for w, cell, beside in small.measure(workers, name, 64, MACHINE, None, least=least)}
    assert (found["old"][0].schedule.partition("/")[0], found["old"][0].us) == (best, 30.0)
    cell, beside = found["new"]
    assert (cell.schedule, cell.us, beside["plain_us"], beside["cluster_us"]) == (f"{PAIR}/0", 10.0, 10.4, 10.0)
    assert beside["turns_us"] == [10.0] * small.TURNS and found["old"][1]["cluster"] is None  # far slower: not timed
    assert {row.partition("/")[0] for row in beside["wrong"]} == {best} and not set(beside["wrong"]) & set(
        beside["looks"]
    )
    assert beside["codes"] == f"{least}..7"
    codes = layout.load_codes(workers[0].server.calls[0].weight)
    assert (int(codes.min()), int(codes.max())) == (least, 7)


def test_weights_are_made_once(small: ModuleType) -> None:
    server = in_process(small, "new", Clock()).server
    for name in ("moe", "dense", "moe"):
        server.cell(name, 8)
    assert set(server.weights) == set(GEMMS.values())
    first = server.weights[GEMMS["moe"]][0].codes
    server.cell("moe", 16)
    assert server.calls[0].weight is first


def test_every_cell_has_likely_rows_of_every_family(script: ModuleType) -> None:
    for gemm in script.GEMMS.values():
        for tokens in (1, 64, 1024, 8192):
            rows = tokens * max(1, gemm.top_k) * gemm.experts // gemm.routed or 1
            likely = script.likely(gemm, rows)
            kinds = [[r for r in likely if script.family(r) == kind] for kind in {script.family(r) for r in likely}]
            assert len(set(likely)) == len(likely) and all(len(kind) <= script.MOST + 1 for kind in kinds)
            assert {r.cluster for r in likely} == {1, 2} or rows < 128 * gemm.experts
            problem = schedules.Problem(rows, gemm.experts, gemm.rows, gemm.cols)
            assert schedules.choose(problem) in likely
            assert script.likely(gemm, rows, (1,)) == [r for r in likely if r.cluster == 1]
            fewer = script.likely(gemm, rows, most=2)
            assert len(fewer) <= 2 * len(kinds) + 1 and schedules.choose(problem) in fewer


def test_cells_are_named(small: ModuleType) -> None:
    assert small.parse_cells(["moe:1,8", "dense:2"]) == [("moe", 1), ("moe", 8), ("dense", 2)]
    with pytest.raises(SystemExit, match=r"--cells odd:1: expected one of moe, dense"):
        small.parse_cells(["odd:1"])
    every = small.parse_cells(["all"])
    assert len(set(every)) == len(every) == 2 * len(shapes.TOKENS) and {m for _, m in every} == set(shapes.TOKENS)
    assert set(every[: len(every) // 3]) == {(name, m) for name in GEMMS for m in (1, 64, 1024, 4096)}


def test_without_a_build_nothing_begins(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gemm_builds.py", "--cells", "all", "--out", str(tmp_path / "cells.jsonl")])
    with pytest.raises(SystemExit):
        script.main()
    assert "--build: found none, expected NAME=LIBRARY" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_what_a_peer_prepares_for(small: ModuleType) -> None:
    found = small.what_rows([("moe", 8), ("dense", 8), ("dense", 1)], -7, torch.device("cpu"))
    moe, dense = (replace(GEMMS[name], least=-7) for name in ("moe", "dense"))
    assert found[dense] == [8, 1] and set(found[moe]) == {16}


def test_a_cell_that_fails_does_not_end_the_run(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stub, out = tmp_path / "stub.py", tmp_path / "cells.jsonl"
    stub.write_text(STUB.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(small, "SERVE", (sys.executable, str(stub)))
    monkeypatch.setattr(sys.modules["worker"], "PATIENCE_S", 8.0)
    words = ["--build", "new=a.so", "--peer", "other", "--out", str(out), "--cells"]
    for asked in ("dense:1,2,3,4,5", "dense:1,5"):
        monkeypatch.setattr(sys, "argv", ["bench_gemm_builds.py", *words, asked])
        small.main()
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        done = [(r["tokens"], r["build"], r["us"], r["peer_us"], r["codes"]) for r in lines if r["record"] == "gemm"]
        assert done == [(m, "new", 2.0, 3.0, "-8..7") for m in (1, 5)], "what stands there is not measured again"
        theirs = [(r["peer_turns_us"], r["peer_spread_us"], r["peer_how"]) for r in lines if r["record"] == "gemm"]
        assert theirs == [([1.0, 3.5, 2.5, 9.0], 0.9, "tile 1.0")] * 2
    said = capfd.readouterr().out
    for tokens, why in ((2, "cell: RuntimeError: out of luck"), (3, "no answer in 8 s"), (4, "the process has ended")):
        assert f"{tokens} FAILED, new: {why}" in said
