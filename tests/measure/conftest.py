"""What every test of measuring may ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_stand import ABOUT, MACHINE, Clock

from w4afp8.kernels import layers, schedules, settings, tuned
from w4afp8.measure.shapes import Gemm, Layer, Shape
from w4afp8.measure.stand import Stand, layer_schedule


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stand(clock: Clock) -> Stand:
    return Stand(torch.device("cpu"), clock, lambda: MACHINE, clock.gemm, clock.layer, clock.way, layer_schedule, ABOUT)


@pytest.fixture
def small() -> Shape:
    """4 of 8 experts here, two choices a token; a dense projection beside them."""
    return Shape("small", Layer("small", 256, 128, 4, 8, 2), (Gemm("small.o", 128, 256),))


@pytest.fixture(autouse=True)
def _no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """No table of this machine's user is read or written."""
    monkeypatch.delenv("W4AFP8_TUNED", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("w4afp8.measure.data.BEYOND_L2_BYTES", 1.0)
    yield
    tuned.forget()
    schedules.forget()
    layers.forget()
    assert settings.tuned_table("x").is_relative_to(tmp_path)
