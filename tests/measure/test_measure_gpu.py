"""The real stand: a clock that can be trusted, ceilings a Hopper can have, a search whose table the kernels use."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from w4afp8.kernels import layers, schedules, settings
from w4afp8.measure import bench, stand, table, tune
from w4afp8.measure.shapes import Gemm, Layer, Shape
from w4afp8.measure.timing import graph_time

pytestmark = pytest.mark.gpu
SMALL = Shape("small", Layer("small", 1024, 512, 16, 32, 4), (Gemm("small.o", 1024, 2048),))


def test_twice_the_bytes_take_twice_the_time() -> None:
    # Three buffers of 512 MiB are cycled over: L2 holds none of them.
    buffers = [torch.zeros(1 << 29, dtype=torch.uint8, device="cuda") for _ in range(3)]
    half, whole = (graph_time([partial(b[: 1 << n].fill_, 1) for b in buffers]).us for n in (28, 29))
    assert whole / half == pytest.approx(2, rel=0.1)
    assert 2.0e6 < (1 << 29) / whole < 5.5e6, "bytes per microsecond that a Hopper can write"


def test_ceilings_are_a_hoppers() -> None:
    machine = stand.hopper("a test").ceilings()
    assert 2.0e6 < machine.bytes_us < 5.5e6 and 0.5e9 < machine.flop_us < 2.2e9
    assert machine.read_us(16 << 20) > (16 << 20) / machine.bytes_us


def test_every_cell_is_measured() -> None:
    place = stand.hopper("a test")
    machine = place.ceilings()
    cells = [
        *bench.run("gemm", [SMALL], (1, 64), place, machine, None, lambda *step: None),
        *bench.run("moe", [SMALL], (1, 64), place, machine, None, lambda *step: None),
    ]
    assert len(cells) == 8
    assert all(1 < cell.us < 5000 and cell.floor_us > 0 for cell in cells)


@pytest.mark.parametrize("kind", ["gemm", "moe"])
def test_what_is_found_is_what_is_chosen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand.hopper("a test")
    found = list(tune.search("moe" if kind == "moe" else "gemm", [SMALL], (64,), place, lambda *step: None))
    assert len(found) == 3
    assert not any(f.wrong for f in found), "a schedule is wrong"
    path = settings.tuned_table(place.about["device"])
    assert path.is_relative_to(tmp_path)
    table.write(path, found, place.about, "a test")
    for f in found:
        if isinstance(f.problem, Gemm):
            asked = schedules.Problem(f.rows, f.problem.experts, f.problem.rows, f.problem.cols)
            assert schedules.choose(asked) == f.best
        else:
            row = layers.choose(layers.Layer(256, f.rows, f.problem.experts, f.problem.hidden, f.problem.inner))
            assert (row.kernel if row else "several") == f.best
