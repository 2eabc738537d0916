"""Cells, their file, their table and their plot, on a clock that a test sets."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_stand import ABOUT, MACHINE
from rich.console import Console

from w4afp8.errors import DeviceError, RecipeError, ResourceError
from w4afp8.kernels import build
from w4afp8.measure import bench, cells, data, peers, roofline, stand
from w4afp8.measure.cells import Cell, PeerTime, Run
from w4afp8.measure.floor import gemm_work
from w4afp8.measure.peers import Peer
from w4afp8.measure.shapes import NAMED, Layer, Shape
from w4afp8.measure.timing import Timing
from w4afp8.terminal.bench_view import show_run

TOKENS = (1, 16)


class FakePeer:
    """Half as fast at one token, as fast as ours at others."""

    def time(self, *arguments: Any) -> PeerTime | None:
        many = arguments[0] != 1 if isinstance(arguments[0], int) else len(arguments[0][0].x) != 1
        return PeerTime("other", 10.0 if many else 20.0, 0.1, "tile")


PEER = Peer("other", "pip install other", lambda: "1", lambda gemm, copies: FakePeer(), lambda layer: FakePeer())


def measured(kind: cells.Kind, shape: Shape, place: stand.Stand, peer: Peer | None = None) -> Run:
    steps: list[tuple[str, int, int]] = []
    found = bench.run(kind, [shape], TOKENS, place, MACHINE, peer, lambda *step: steps.append(step))
    run = Run(ABOUT, MACHINE, tuple(found))
    assert steps[-1][1] == steps[-1][2] == len(TOKENS)
    return run


def test_every_gemm_at_every_token_count(stand: stand.Stand, small: Shape) -> None:
    run = measured("gemm", small, stand)
    assert [(c.shape, c.tokens) for c in run.cells if c.tokens == 16] == [
        ("small.gate_up", 16), ("small.down", 16), ("small.o", 16),
    ]  # fmt: skip
    dense = next(c for c in run.cells if c.shape == "small.o" and c.tokens == 16)
    work = gemm_work(small.dense[0], 16, 1, 16)
    assert (dense.us, dense.spread_us, dense.rows, dense.hit) == (10.0, 0.5, 16, 1)
    assert (dense.bytes, dense.flops) == (work.bytes, work.flops)
    assert dense.floor_us == work.floor_us(MACHINE) and dense.x_floor == 10.0 / dense.floor_us
    assert dense.gb_s == pytest.approx(work.bytes / 10e-6 / 1e9)
    assert dense.tflop_s == pytest.approx(work.flops / 10e-6 / 1e12)


def test_a_way_that_runs_no_more_is_left_out() -> None:
    layer, cpu = Layer("wide", 256, 256, 4, 4, 2), torch.device("cpu")
    gate_up, down = (data.weight(gemm, cpu) for gemm in layer.gemms)
    few, many = (data.layer_calls(layer, gate_up, down, tokens)[0] for tokens in (1, 4096))
    assert stand.layer_schedule(few) == stand.layer_schedule(few, "n8f") == "n8f, one launch"
    assert stand.layer_schedule(few, "n8") == "n8, one launch"
    assert stand.layer_schedule(few, "several") != stand.layer_schedule(few)
    assert stand.layer_schedule(many, "n8f") is None
    assert stand.layer_schedule(many, "n8") is None and "/" in (stand.layer_schedule(many) or "")
    odd = replace(layer, hidden=384)
    gate_up, down = (data.weight(gemm, cpu) for gemm in odd.gemms)
    (few, *_) = data.layer_calls(odd, gate_up, down, 1)
    assert stand.layer_schedule(few, "n8") is None, "n8 multiplies 256 inputs at a time"


def test_half_the_experts_see_about_half_the_choices(stand: stand.Stand, small: Shape) -> None:
    cell = next(c for c in measured("gemm", small, stand).cells if c.shape == "small.down" and c.tokens == 16)
    assert 8 <= cell.rows <= 24 and 3 <= cell.hit <= 4


def test_the_layer_is_one_cell_a_token_count(stand: stand.Stand, small: Shape) -> None:
    run = measured("moe", small, stand)
    assert [(c.kind, c.shape, c.tokens) for c in run.cells] == [("moe", "small", 1), ("moe", "small", 16)]
    assert all(c.schedule.count("/") == 2 for c in run.cells), "inner 128 is no one-launch layer's"
    assert list(bench.run("moe", [NAMED["DENSE"]], TOKENS, stand, MACHINE, None, lambda *s: None)) == []


@pytest.mark.parametrize("kind", ["gemm", "moe"])
def test_the_file_gives_the_run_back(kind: Any, stand: stand.Stand, small: Shape, tmp_path: Path) -> None:
    run, path = measured(kind, small, stand, PEER), tmp_path / "cells.jsonl"
    for line in (cells.machine_line(MACHINE, ABOUT), *(cells.cell_line(c, ABOUT) for c in run.cells)):
        cells.append(path, line)
    again = cells.read_run(path, kind)
    assert again.about == ABOUT and again.machine.bytes_us == pytest.approx(MACHINE.bytes_us, rel=1e-6)
    assert [(c.shape, c.tokens, c.schedule, c.peer and c.peer.how) for c in again.cells] == [
        (c.shape, c.tokens, c.schedule, c.peer and c.peer.how) for c in run.cells
    ]
    record = json.loads(path.read_text().splitlines()[-1])
    assert record["ratio"] == 1.0 and record["device"] == "a Hopper" and record["x_floor"] > 0
    cells.append(path, cells.machine_line(MACHINE, ABOUT))
    assert len(cells.read_run(path, kind).cells) == len(run.cells), "a run that was stopped at once hides no other"
    other: cells.Kind = "moe" if kind == "gemm" else "gemm"
    with pytest.raises(RecipeError, match=f"found no run of `w4afp8 bench {other}`"):
        cells.read_run(path, other)
    cells.append(path, "not json")
    with pytest.raises(RecipeError, match=f"line {len(run.cells) + 3} is no record"):
        cells.read_run(path, kind)


def shown(run: Run) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_run(console, run)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_table_says_time_rate_share_and_peer(stand: stand.Stand, small: Shape) -> None:
    alone = shown(measured("moe", small, stand))
    assert "a Hopper, driver 999.1" in alone and "4.77 TB/s" in alone and "1500 TFLOP/s" in alone
    for head in ("time us", "spread", "GB/s", "TFLOP/s", "x floor", "of floor", "schedule"):
        assert head in alone
    assert "ratio" not in alone
    beside = shown(measured("moe", small, stand, PEER))
    assert "other us" in beside and "geometric mean 1.41, faster in 1 of 2 cells" in beside


def test_the_plot_has_a_roof_and_both_sides(stand: stand.Stand, small: Shape, tmp_path: Path) -> None:
    run = measured("gemm", small, stand, PEER)
    for name in ("roof.png", "roof.svg"):
        roofline.check(tmp_path / name)
        roofline.draw(run, tmp_path / name)
    assert (tmp_path / "roof.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "roof.svg").stat().st_size > 10_000
    with pytest.raises(ResourceError, match=r"ends in .png"):
        roofline.check(tmp_path / "roof.txt")


def test_cells_without_a_product_are_not_drawn(stand: stand.Stand, small: Shape, tmp_path: Path) -> None:
    """No token may choose an expert of a rank that holds few."""
    run = measured("moe", small, stand)
    first, *others = run.cells
    idle = replace(first, flops=0.0, rows=0.0, hit=0.0)
    assert " 0.0 " in shown(replace(run, cells=(idle,)))
    roofline.draw(replace(run, cells=(idle, *others)), tmp_path / "roof.svg")
    assert f"M={others[0].tokens}" in (text := (tmp_path / "roof.svg").read_text()) and f"M={idle.tokens} " not in text
    with pytest.raises(ResourceError, match="no token chose an expert of this rank"):
        roofline.draw(replace(run, cells=(idle,)), tmp_path / "roof.png")


def test_the_roof_is_the_machines(stand: stand.Stand, small: Shape) -> None:
    from matplotlib.figure import Figure

    run = measured("gemm", small, stand)
    axes = Figure().add_subplot()
    roofline.roof(axes, run)
    (line,) = axes.get_lines()
    x, y = line.get_data()
    assert y[0] == pytest.approx(x[0] * MACHINE.bytes_us / 1e6) and y[1] == y[2] == pytest.approx(1500)
    assert all(x[0] < cell.flops / cell.bytes < x[2] for cell in run.cells)


def test_a_peer_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="unknown peer 'hummingbird'"):
        peers.get("hummingbird")
    from w4afp8.measure.peers import humming

    monkeypatch.setattr(humming, "PEER", replace(humming.PEER, version=lambda: None))
    with pytest.raises(DeviceError, match="pip install humming-kernels"):
        peers.get("humming")


def test_the_peers_row_ids_are_padded_expert_by_expert() -> None:
    from w4afp8.measure.peers.humming import _aligned

    ids, experts, total = _aligned(torch.tensor([0, 3, 3, 8], dtype=torch.int32), 3, 4)
    assert ids.tolist() == [0, 1, 2, 8, 3, 4, 5, 6, 7, 8, 8, 8], "8, the number of rows, pads"
    assert experts.tolist() == [0, 2, 2] and total.tolist() == [12]


def test_the_faster_mode_of_a_peer_counts() -> None:
    from w4afp8.measure.peers.humming import _fastest

    found = _fastest({"indexed": (Timing(9.0, 0.1), "a"), "grouped": (Timing(8.0, 0.2), "b")})
    assert found == PeerTime("humming", 8.0, 0.2, "grouped b") and _fastest({}) is None


def test_without_a_hopper_the_refusal_names_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"bench gemm: found no CUDA device .* expected a Hopper GPU"):
        stand.hopper("bench gemm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(DeviceError, match=r"found NVIDIA A100 \(compute capability 8.0\)"):
        stand.hopper("tune moe")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(build, "why_not", lambda: "no compiled kernels")
    with pytest.raises(DeviceError, match=r"not to be had: no compiled kernels; .*doctor --build"):
        stand.hopper("tune moe")
    assert DeviceError.exit_code == 4


def test_a_cell_is_what_its_record_says() -> None:
    cell = Cell("gemm", "s", 1, 8.0, 7.5, 1e6, 2e6, 1.0, "bytes", 1.2, 2.0, 0.1, "t8/0", PeerTime("p", 3.0, 0.1, "x"))
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    assert cell.ratio == 1.5
