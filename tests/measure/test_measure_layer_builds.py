"""benchmarks/bench_layer_builds.py: builds of the layer way by way, a wrong one is never timed, other bits are said."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fake_stand import ABOUT, MACHINE, Clock, InProcess

from w4afp8.measure.shapes import Layer
from w4afp8.measure.stand import Stand, layer_schedule
from w4afp8.measure.timing import Timing

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
WIDE = Layer("wide", 256, 256, 4, 4, 2)

# A server in a process of its own, named by its library: fails at 2 tokens.
STUB = """
import sys
sys.path.insert(0, {benchmarks!r})
from worker import serve

class Server:
    def machine(self):
        return {{"read_16MiB_us": 5.0, "read_4096MiB_us": 900.0, "fp8_flop_us": 1.5e9, "device": "a stub"}}
    def prepare(self, name, tokens):
        if tokens == 2:
            raise RuntimeError("out of luck")
        return {{"bytes": 1e6, "flops": 1e9}}
    def look(self, way):
        return {{"bits": "same" if way == "n8" else sys.argv[1]}}
    def time(self, way):
        return 9.0 if sys.argv[1] == "a.so" else 8.0

serve(Server())
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    loaded = importlib.import_module("bench_layer_builds")
    for module in (loaded, sys.modules["bench_layer_ways"]):
        monkeypatch.setattr(module, "LAYERS", {"wide": WIDE})
    return loaded


def worker(script: ModuleType, name: str, clock: Any) -> InProcess:
    fake = clock if isinstance(clock, Clock) else clock.clock
    on = Stand(torch.device("cpu"), clock, lambda: MACHINE, fake.gemm, fake.layer, fake.way, layer_schedule, ABOUT)
    return InProcess(name, script.Server(on))


class Turns:
    """A clock whose turns differ, and that says whose turn it is."""

    def __init__(self, name: str, each_us: list[float], asked: list[str]) -> None:
        self.clock, self.name, self.each_us, self.asked = Clock(), name, iter(each_us), asked

    def __call__(self, calls: Any, replays: int = 15) -> Timing:
        self.asked.append(self.name)
        return Timing(next(self.each_us), 0.5)


def test_builds_take_turns_and_the_median_counts(script: ModuleType) -> None:
    asked: list[str] = []
    old = worker(script, "old", Turns("old", [9.0, 5.0, 5.2, 5.0], asked))
    new = worker(script, "new", Turns("new", [4.0, 4.0, 4.2, 7.0], asked))
    (found,) = script.measure([old, new], "wide", 8, ["n8"], MACHINE)
    assert asked == ["old", "new", "new", "old"] * 2
    assert found["us"] == {"old": 5.1, "new": 4.1} and found["turns_us"]["old"] == [9.0, 5.0, 5.2, 5.0]
    assert (found["shape"], found["tokens"], found["way"]) == ("wide", 8, "n8") and found["floor_us"] > 0
    assert found["differs"] == [] and found["wrong"] == {}
    assert all(word in script.line_of(found) for word in ("n8", "old 5.10", "new 4.10"))


def test_other_bits_are_said_and_wrong_ones_are_not_timed(script: ModuleType) -> None:
    last_place, wrong = Clock(), Clock()
    last_place.spoils = lambda row, out: out.view(torch.int16)[0, 0].add_(1) if row.kernel == "n16" else None
    wrong.spoils = lambda row, out: out.mul_(1.2) if row.kernel == "n8" else None
    workers = [worker(script, name, c) for name, c in (("old", Clock()), ("new", last_place), ("odd", wrong))]
    n8, n16, several = script.measure(workers, "wide", 8, ["n8", "n16", "several"], MACHINE)
    assert set(n8["us"]) == {"old", "new"} and list(n8["wrong"]) == ["odd"] and n8["differs"] == []
    assert n16["differs"] == ["new"] and set(n16["us"]) == {"old", "new", "odd"}
    assert several["differs"] == [] and several["wrong"] == {}
    assert "differs" in script.line_of(n16) and "odd: an error of" in script.line_of(n8)


def test_a_way_that_cannot_run_the_cell_is_said(script: ModuleType) -> None:
    def lacking(call: Any, row: Any, out: Any) -> Any:
        raise RuntimeError("n16 was compiled\nnot")

    old, new = worker(script, "old", Clock()), worker(script, "new", Clock())
    object.__setattr__(new.server.on, "way", lacking)  # type: ignore[attr-defined]
    few, wide = script.measure([old, new], "wide", 64, ["n8f", "n16"], MACHINE)
    assert few["us"] == {} and "128 pairs, this kernel holds 64" in few["wrong"]["old"]
    assert set(wide["us"]) == {"old"} and wide["wrong"] == {"new": "n16 was compiled"}


def test_every_process_has_the_same_cell(script: ModuleType) -> None:
    servers = [worker(script, name, Clock()).server for name in ("old", "new")]
    for tokens in (8, 16):
        for server in servers:
            server.prepare("wide", tokens)  # type: ignore[attr-defined]
            torch.rand(3)  # what one of them draws beside
        for mine, theirs in zip(*(server.calls for server in servers), strict=True):  # type: ignore[attr-defined]
            assert all(torch.equal(getattr(mine, k), getattr(theirs, k)) for k in ("x", "topk_ids", "w13", "w2"))


def test_cells_are_named(script: ModuleType) -> None:
    assert script.parse_cells(["wide:1,8:n8f,n8", "wide:8:n8,n16"]) == {
        ("wide", 1): ["n8f", "n8"], ("wide", 8): ["n8f", "n8", "n16"],
    }  # fmt: skip
    for odd in ("R1:1:n8", "wide:1", "wide:0:n8", "wide:8:n99", "wide:8:"):
        with pytest.raises(SystemExit, match=rf"--cells {odd}: expected .*; layers: wide; ways: several, n8f, n8, n16"):
            script.parse_cells([odd])


def test_a_run_becomes_lines_and_goes_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub, out = tmp_path / "stub.py", tmp_path / "builds.jsonl"
    stub.write_text(STUB.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(script, "SERVE", (sys.executable, str(stub)))

    def main(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench_layer_builds.py", "--out", str(out), "--run", "waves", *words])
        script.main()

    both = ["--build", "old=a.so=version 9", "--build", "new=b.so=tiles in waves", "--cells"]
    main(*both, "wide:1,2,8:n8,n16")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    said = [(r["run"], r["build"], r["what"], r["device"]) for r in lines if r["record"] == "build"]
    assert said == [("waves", "old", "version 9", "a stub"), ("waves", "new", "tiles in waves", "a stub")]
    found = [(r["tokens"], r["way"], r["us"], r["differs"]) for r in lines if r["record"] == "layer_builds"]
    us = {"old": 9.0, "new": 8.0}
    assert found == [(m, way, us, ["new"] * (way == "n16")) for m in (1, 8) for way in ("n8", "n16")]
    assert "2 FAILED, old: prepare: RuntimeError: out of luck" in capsys.readouterr().out
    main(*both, "wide:8:n16,several")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = [(r["tokens"], r["way"]) for r in lines if r["record"] == "layer_builds"]
    assert found[4:] == [(8, "several")], "what stands there is not measured again"
    assert [r["record"] for r in lines].count("build") == 2, "nor said again"
    for words, why in (
        (["--cells", "wide:1:n8"], "--build: found none, expected NAME=LIBRARY=WHAT"),
        (["--build", "old=a.so", "--cells", "wide:1:n8"], "expected NAME=LIBRARY=WHAT"),
        ([*both, "wide:8:n8"], "--cells: nothing is left to measure"),
    ):
        with pytest.raises(SystemExit):
            main(*words)
        assert why in capsys.readouterr().err
