"""benchmarks/record_kernels.py and kernel_summary.py: what was measured becomes records, a table and a summary."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_stand import ABOUT, MACHINE

from w4afp8.kernels import tuned
from w4afp8.measure import cells
from w4afp8.measure.cells import Cell, PeerTime

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
OTHERS = {"device": ABOUT["device"], "schedules": {"4 64 128": [[8, "t8", 0], [64, "gone", 0]]}, "layers": {}}


def gemm(tokens: int, us: float, peer_us: float | None = None, **beside: Any) -> dict[str, Any]:
    """A line of R1's gate_up whose floor is 100 us."""
    peer = PeerTime("humming", peer_us, 0.1, "tile") if peer_us else None
    rows = 8.0 * tokens
    what = "gemm", "R1.gate_up", tokens, rows, min(rows, 256), 4e8, 1e9, 100.0, "bytes", 101.0
    cell = Cell(*what, us, 1.0, "t16/4", peer)
    extra = {"build": "v7", "codes": "-8..7", "looks": {"t16/4": us}, "plain": "t16/4", **beside}
    return {**json.loads(cells.cell_line(cell, ABOUT)), **extra}


def layer(name: str, tokens: int, way: str, us: float) -> dict[str, Any]:
    cell = Cell("moe", name, tokens, 8.0 * tokens, 8, 2e7, 1e9, 5.0, "bytes", 7.0, us, 1.0, f"{way}, one launch")
    return {**json.loads(cells.cell_line(cell, ABOUT)), "way": way, "ways": {way: us}, "wrong": {}}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("record_kernels")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Results of version 6 with both keys, and a table."""
    old = {"record": "cell", "shape": "R1.gate_up", "tokens": 1, "rows": 8, "hit": 8, "floor_us": 100.0, "bytes": 4e8,
           "bound": "bytes", "kernel": "t8", "split": 0, "us": 150.0, "humming_us": 120.0, "kernels": 6}  # fmt: skip
    machine = json.loads(cells.machine_line(MACHINE, ABOUT))
    lines = [{**machine, "kernels": 6}, old]
    (tmp_path / "kernels-gemm-h200.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "table.json").write_text(json.dumps(OTHERS))
    return tmp_path


def record(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path, lines: list[dict[str, Any]], *more: str
) -> None:
    file = place / "measured.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(file), "--kernels", "7", "--results", str(place), "--table", str(place / "table.json"), *more]
    monkeypatch.setattr(sys, "argv", ["record_kernels.py", *words])
    script.main()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_measured_is_recorded_once(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = json.loads(cells.machine_line(MACHINE, ABOUT))
    lines = [machine, gemm(1, 110.0), gemm(8, 200.0, 190.0), machine, gemm(1, 105.0, 126.0)]
    lines += [layer("TP8", 1, "n8", 18.0), gemm(8, 180.0, 160.0, codes="-7..7", schedule="t8/0")]
    for _ in range(2):  # recording again changes nothing
        record(script, monkeypatch, place, lines)
        gemms, layers = read(place / "kernels-gemm-h200.jsonl"), read(place / "kernels-layer-h200.jsonl")
        assert [(r["record"], r["kernels"]) for r in gemms] == [
            ("machine", 6), ("cell", 6), ("machine", 7), ("gemm", 7), ("machine", 7), ("gemm", 7), ("gemm", 7),
        ]  # fmt: skip
        assert [(r["record"], r["kernels"]) for r in layers] == [("machine", 7), ("moe", 7)]
        assert [(r["tokens"], r["us"], r["codes"]) for r in gemms if r["record"] == "gemm"] == [
            (8, 200.0, "-8..7"), (1, 105.0, "-8..7"), (8, 180.0, "-7..7"),
        ]  # fmt: skip
        assert not any("looks" in r or "build" in r for r in gemms) and gemms[3]["plain"] == "t16/4"
    assert len(cells.read_run(place / "kernels-gemm-h200.jsonl", "gemm").cells) == 2, "`bench --from` reads it"
    table = tuned.parse(place / "table.json")
    assert table.schedules == {"4 64 128": [(8, "t8", 0)], "256 4096 7168": [(8, "t16", 4), (64, "t16", 4)]}
    assert table.layers == {"256 7168 256": [(8, "n8")]} and table.device == ABOUT["device"]
    assert json.loads((place / "table.json").read_text())["driver"] == ABOUT["driver"]
    said = capsys.readouterr().out
    assert "| all | 2 | 1.45 (1.05..2.00) | 1.55 | 1.07 | 1 | 0.80, 0, 1 |" in said
    assert "behind the peer: 1\n  R1.gate_up M=8 0.950 (t16/4)" in said
    assert (
        "decode, >= 100 MB <= 1.12: 1 of 2; not R1.gate_up M=8 2.00" in said and "TP8 M=1, us <= 20.0: 1 of 1" in said
    )


def test_other_cells_and_codes_leave_the_rest_alone(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    machine = json.loads(cells.machine_line(MACHINE, ABOUT))
    record(script, monkeypatch, place, [machine, gemm(1, 105.0)])
    record(script, monkeypatch, place, [machine, gemm(8, 106.0)])
    before = (place / "table.json").read_text()
    record(script, monkeypatch, place, [machine, gemm(1, 99.0, codes="-7..7")])
    gemms = read(place / "kernels-gemm-h200.jsonl")
    assert [r["us"] for r in gemms if r.get("kernels") == 7 and r["record"] == "gemm"] == [105.0, 106.0, 99.0]
    assert tuned.parse(place / "table.json").schedules["256 4096 7168"] == [(8, "t16", 4), (64, "t16", 4)]
    record(script, monkeypatch, place, [machine, gemm(1, 1.0)], "--dry")
    assert read(place / "kernels-gemm-h200.jsonl") == gemms and (place / "table.json").read_text() == before


def test_what_cannot_be_recorded_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = json.loads(cells.machine_line(MACHINE, ABOUT))
    with pytest.raises(SystemExit, match="of several builds; name one by --build"):
        record(script, monkeypatch, place, [machine, gemm(1, 1.0, build="a"), gemm(1, 2.0, build="b")])
    with pytest.raises(SystemExit, match=r"driver: found 1.0, 999.1, expected one"):
        record(script, monkeypatch, place, [machine, gemm(1, 1.0), {**machine, "driver": "1.0"}, gemm(8, 1.0)])
    with pytest.raises(SystemExit, match="no cells"):
        record(script, monkeypatch, place, [machine])
    record(script, monkeypatch, place, [machine, gemm(1, 1.0, schedule="t9/0")])
    assert "R1.gate_up M=1: t9/0 is no kernel of this checkout" in capsys.readouterr().out
    assert "256 4096 7168" not in tuned.parse(place / "table.json").schedules


@pytest.mark.parametrize(
    ("rows", "moved", "bound", "bar"),
    [
        (8, 4e8, "bytes", ("decode, >= 100 MB", 2.0, 1.12)),
        (8, 4e7, "bytes", ("bytes, < 100 MB, of a read", 1.6, 1.5)),
        (64, 4e7, "bytes", ("bytes, < 100 MB, of a read", 1.6, 1.5)),
        (64, 4e7, "flops", ("middle", 2.0, 1.3)),
        (128, 4e8, "bytes", ("middle", 2.0, 1.3)),
        (129, 4e8, "flops", ("prefill", 2.0, 1.45)),
    ],
)
def test_a_cell_has_one_bar(script: ModuleType, rows: float, moved: float, bound: str, bar: object) -> None:
    summary = script.kernel_summary
    assert summary.gemm_bar(summary.Row("x", 1, rows, moved, bound, 10.0, 12.5, 20.0, None, "t8/0")) == bar


def test_the_records_of_version_6_give_the_logs_table(script: ModuleType) -> None:
    summary = script.kernel_summary
    rows = summary.rows_of(summary.read(summary.RESULTS / summary.GEMMS), 6)
    beside = {key: row for key, row in rows.items() if row.peer_us}
    lines = summary.group_table(beside, {}, 5)
    assert lines[2] == "| all | 95 | 1.70 (1.07..4.11) | 1.96 | 1.15 | 70 | - |"
    assert lines[-1] == "| dense, M >= 256 | 30 | 1.72 (1.38..2.88) | 1.90 | 1.11 | 23 | - |"


def test_a_recorded_peer_is_compared_where_both_were_measured(script: ModuleType) -> None:
    summary = sys.modules["kernel_summary"]
    theirs = json.loads((summary.RESULTS / summary.RECORDED).read_text())["sglang_us"]["R1.gate_up"]
    lines = [gemm(8, theirs["8"] / 4), gemm(512, theirs["512"]), gemm(16, 1.0)]  # at 16 tokens it was not recorded
    rows = summary.rows_of([{**line, "kernels": 7} for line in lines], 7)
    assert summary.recorded_line("GEMMs", rows) == (
        "GEMMs: sglang (recorded) / ours 2.00 over 2 cells (R1.gate_up M=512 1.00 .. R1.gate_up M=8 4.00)"
    )
    assert "none of these cells" in summary.recorded_line("GEMMs", {})
