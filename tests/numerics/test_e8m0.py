"""E8M0: every byte, and nothing but powers of two on the way back."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w4afp8.errors import QuantizationError
from w4afp8.numerics import e8m0

EVERY = torch.arange(255, dtype=torch.uint8)


def test_every_byte_is_its_power_of_two() -> None:
    assert e8m0.decode(EVERY).tolist() == [math.ldexp(1.0, byte - 127) for byte in range(255)]


def test_every_byte_survives() -> None:
    assert torch.equal(e8m0.encode(e8m0.decode(EVERY)), EVERY)


def test_torch_decodes_to_the_same_numbers(golden: Path) -> None:
    assert torch.equal(EVERY.view(e8m0.E8M0).float(), e8m0.decode(EVERY))
    table = json.loads((golden / "numeric_tables.json").read_text())["torch_e8m0_decode"]
    for byte, value in zip(table["byte"], table["f32"]):
        if byte != e8m0.NAN:
            assert e8m0.decode(torch.tensor([byte], dtype=torch.uint8)).item() == float(value)


def test_a_nan_byte_is_named() -> None:
    with pytest.raises(QuantizationError, match=r"scale \[1, 0\] is the byte 255"):
        e8m0.decode(torch.tensor([[0], [255]], dtype=torch.uint8))


@given(st.integers(0, 2**32 - 1))
def test_any_float_is_encoded_exactly_or_refused(bits: int) -> None:
    value = struct.unpack("<f", struct.pack("<I", bits))[0]
    power = value > 0 and math.isfinite(value) and math.frexp(value)[0] == 0.5 and value >= 2.0**-127
    if power:
        assert e8m0.decode(e8m0.encode(torch.tensor([value]))).item() == value
    else:
        with pytest.raises(QuantizationError, match=r"scale \[0\] is .*powers of two"):
            e8m0.encode(torch.tensor([value]))


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, 1.5, 1.49, 3.0, 2.0**-128, math.inf, -math.inf, math.nan])
def test_the_first_offending_value_is_named(value: float) -> None:
    with pytest.raises(QuantizationError, match=r"scale \[0, 1\] is "):
        e8m0.encode(torch.tensor([[2.0, value], [value, 1.0]]))
    with pytest.raises(QuantizationError, match="bfloat16"):
        e8m0.encode(torch.ones(1, 1, dtype=torch.bfloat16))


def test_views_encode_as_their_copies_do() -> None:
    scale = e8m0.decode(EVERY[:250]).view(25, 10)
    assert torch.equal(e8m0.encode(scale.T), e8m0.encode(scale).T)
