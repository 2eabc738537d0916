"""Floors and clocks, computed by hand."""

from __future__ import annotations

import pytest
from fake_stand import MACHINE

from w4afp8.measure.floor import Machine, Work, gemm_work, layer_work
from w4afp8.measure.shapes import NAMED, Gemm
from w4afp8.measure.timing import summary


def test_bytes_of_a_gemm() -> None:
    gemm = Gemm("g", 4096, 7168, experts=256, routed=256, top_k=8, gathers=True)
    work = gemm_work(gemm, rows=512, hit=220, distinct=64)
    assert work.bytes == 220 * 4096 * 7168 // 2 + 220 * 4096 * 56 * 2 + 512 * 4096 * 2 + 64 * 7168
    assert work.flops == 2 * 512 * 4096 * 7168
    down = gemm_work(Gemm("d", 7168, 2048, experts=256, top_k=8), rows=512, hit=220, distinct=64)
    assert down.bytes - 220 * 7168 * (2048 // 2 + 16 * 2) == 512 * (7168 * 2 + 2048), "down reads a row a choice"


def test_bytes_of_a_layer() -> None:
    layer = NAMED["R1"].layer
    assert layer
    work = layer_work(layer, tokens=64, pairs=512, hit=220)
    assert work.bytes == 220 * 3 * 2048 * 7168 * (0.5 + 2 / 128) + 64 * 7168 * 4
    assert work.flops == 3 * 2 * 512 * 2048 * 7168


def test_the_longer_floor_counts() -> None:
    rate = 4096 * 2**20 / 900.0
    assert MACHINE.bytes_us == rate
    assert Work(rate * 7, 1.5e9 * 3).floor_us(MACHINE) == 7 and Work(rate * 7, 1.5e9 * 3).bound(MACHINE) == "bytes"
    assert Work(rate, 1.5e9 * 3).floor_us(MACHINE) == 3 and Work(rate, 1.5e9 * 3).bound(MACHINE) == "flops"


def test_small_reads_take_longer_than_their_share() -> None:
    mib = 2**20
    assert MACHINE.read_us(16 * mib) == 5.0 and MACHINE.read_us(64 * mib) == 16.0
    assert MACHINE.read_us(40 * mib) == pytest.approx(10.5)
    assert MACHINE.read_us(8192 * mib) == pytest.approx(1800)
    assert MACHINE.read_us(1 * mib) >= mib / MACHINE.bytes_us


def test_a_machine_is_what_its_record_says() -> None:
    assert Machine.from_json({**MACHINE.to_json(), "device": "x"}) == MACHINE


def test_spread_leaves_the_ends_out() -> None:
    assert summary([*range(1, 20), 1000]) == (10.5, 15)
    assert summary([3.0]) == (3.0, 0.0)
