"""benchmarks/bench_layer_ways.py: every way of a layer beside the others, a wrong one is never timed."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_stand import MACHINE, Clock, InProcess

from w4afp8.kernels import layers
from w4afp8.measure.cells import Cell, PeerTime, cell_line
from w4afp8.measure.shapes import TOKENS, Layer
from w4afp8.measure.stand import Stand

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
WIDE = Layer("wide", 256, 256, 4, 4, 2)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_layer_ways")


class Peer:
    """Takes 3 us; cannot run 8 tokens."""

    def time(self, calls: Any, clock: Any) -> PeerTime:
        if len(calls[0].x) == 8:
            raise RuntimeError("no such kernel")
        return PeerTime("other", 3.0, 0.1, "tile")


def test_a_kernel_of_any_name_is_a_way(
    script: ModuleType, stand: Stand, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (n8,) = (row for row in layers.ROWS if row.kernel == "n8")
    monkeypatch.setattr(script.tune, "WAYS", (None, replace(n8, kernel="new"), n8))
    monkeypatch.setattr(script, "LAYERS", {"wide": WIDE})
    clock.price = lambda kernel: {"new": 4.0, "n8": 1.0}.get(kernel, 9.0)
    clock.spoils = lambda row, out: out.mul_(1.2) if row.kernel == "n8" else None
    worker = InProcess("layers", script.Server(stand))
    ((cell, beside),) = script.measure(worker, "wide", 8, MACHINE, None)
    assert (cell.us, cell.schedule, beside["way"]) == (4.0, "new, one launch", "new")
    assert beside["ways"] == {"several": 9.0, "new": 4.0} and list(beside["wrong"]) == ["n8"]
    assert cell.bytes > 0 and cell.floor_us > 0 and "new" in script.line_of(cell, beside)
    assert Cell.from_json(json.loads(cell_line(cell, {}))).schedule == cell.schedule
    clock.price = lambda kernel: 20.0 if kernel in ("new", "n8") else 9.0
    ((cell, beside),) = script.measure(worker, "wide", 16, MACHINE, None)
    assert beside["way"] == "several" and cell.schedule.count("/") == 2


def test_ours_stands_when_the_peer_fails(script: ModuleType, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LAYERS", {"wide": WIDE})
    CellError = importlib.import_module("worker").CellError

    class Fails(InProcess):
        def send(self, verb: str, *words: Any) -> None:
            try:
                super().send(verb, *words)
            except RuntimeError as error:
                raise CellError(str(error)) from None

    server = script.Server(stand)
    server.theirs["wide"] = Peer()
    found = script.measure(Fails("layers", server), "wide", 8, MACHINE, "other")
    assert next(found)[0].peer is None
    with pytest.raises(CellError, match="no such kernel"):
        next(found)
    ((cell, _),) = script.measure(Fails("layers", server), "wide", 1, MACHINE, "other")
    assert cell.peer == PeerTime("other", 3.0, 0.1, "tile") and cell.ratio == 0.3


def test_every_layer_has_its_cells_once(script: ModuleType) -> None:
    found = script.parse_cells([])
    assert len(found) == len(set(found)) and set(found) == {(name, m) for name in script.LAYERS for m in TOKENS}
    assert script.parse_cells(["R1:1,8", "TP8:64"]) == [("R1", 1), ("R1", 8), ("TP8", 64)]
    for odd in ("R2:1", "R1", "R1:", "R1:8,", "R1:0", "R1:a"):
        with pytest.raises(SystemExit, match=f"--cells {odd}: expected a layer and .*; layers: R1, EP8, TP8, OSS"):
            script.parse_cells([odd])
