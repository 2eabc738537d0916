"""e4m3: every code, every rule at the edges, blocks of 128 x 128 with ragged rims."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics import fp8

Golden = Callable[[str], dict[str, Tensor]]
EVERY = torch.arange(256, dtype=torch.uint8).view(fp8.E4M3)


def decode_by_hand(byte: int) -> float:
    """OCP FP8 e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F and 0xFF are NaN."""
    sign, exponent, mantissa = -1.0 if byte & 0x80 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def test_every_code_means_what_the_standard_says() -> None:
    for byte, value in enumerate(EVERY.float().tolist()):
        expected = decode_by_hand(byte)
        assert (math.isnan(value) and math.isnan(expected)) or value == expected, hex(byte)


def test_every_code_survives_decode_and_encode() -> None:
    again = fp8.encode(EVERY.float()).view(torch.uint8)
    expected = EVERY.view(torch.uint8)
    finite = ~torch.isnan(EVERY.float())
    assert torch.equal(again[finite], expected[finite])
    assert torch.isnan(fp8.encode(EVERY.float()[~finite]).float()).all()


def test_the_cast_is_the_golden_one(golden: Path) -> None:
    table = json.loads((golden / "numeric_tables.json").read_text())["torch_2.13_cpu_float32_to_e4m3fn"]
    values = torch.tensor([float(v) for v in table["in"]])
    assert fp8.encode(values).view(torch.uint8).tolist() == table["byte"]


def test_e8m0_casts_are_the_golden_ones(golden: Path) -> None:
    """Nothing of ours writes e8m0 yet; the reader hands it on, so torch must mean what the table says."""
    tables = json.loads((golden / "numeric_tables.json").read_text())
    cast, decode = tables["torch_2.13_cpu_float32_to_e8m0fnu"], tables["torch_e8m0_decode"]
    values = torch.tensor([float(v) for v in cast["in"]])
    assert values.to(torch.float8_e8m0fnu).view(torch.uint8).tolist() == cast["byte"]
    codes = torch.tensor(decode["byte"], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    for found, expected in zip(codes.float().tolist(), decode["f32"]):
        assert found == float(expected) or (math.isnan(found) and expected == "nan")


def test_everything_above_448_saturates_on_any_torch() -> None:
    big = torch.tensor([448.0, 449.0, 463.9, 464.0, 464.1, 480.0, 1e30, float("inf")])
    assert fp8.encode(big).float().unique().tolist() == [448.0]
    assert fp8.encode(-big).float().unique().tolist() == [-448.0]


def test_ties_go_to_the_even_code() -> None:
    codes = EVERY.float()[:0x7F]  # positive, ascending
    middles = (codes[:-1] + codes[1:]) / 2
    rounded = fp8.encode(middles).view(torch.uint8).int()
    assert (rounded % 2 == 0).all()
    assert ((rounded == torch.arange(126)) | (rounded == torch.arange(1, 127))).all()


@given(st.floats(-500, 500, width=32))
def test_encode_takes_a_nearest_code(value: float) -> None:
    finite = EVERY.float()[~torch.isnan(EVERY.float())]
    found = fp8.encode(torch.tensor([value])).float().item()
    assert abs(found - max(-448.0, min(448.0, value))) == (finite - max(-448.0, min(448.0, value))).abs().min().item()


@pytest.mark.parametrize(("n", "k"), [(576, 7168 // 8), (1, 1), (128, 128), (129, 127), (64, 300), (200, 256)])
def test_ragged_blocks_are_decoded_as_the_definition_says(n: int, k: int) -> None:
    codes = fp8.encode(torch.randn(n, k) * 50)
    scale = torch.rand(fp8.block_grid(n, k)) + 0.1
    rows, columns = torch.arange(n) // 128, torch.arange(k) // 128
    assert torch.equal(fp8.decode_blocks(codes, scale), codes.float() * scale[rows][:, columns])


def test_a_grid_derived_from_the_rows_is_refused() -> None:
    """transformers divides rows by scale rows: 192 rows with 2 scale rows would be blocks of 96."""
    assert fp8.block_grid(576, 7168) == (5, 56)
    with pytest.raises(QuantizationError, match=r"\[3, 1\], expected \[2, 1\] for \[192, 64\]"):
        fp8.decode_blocks(fp8.encode(torch.zeros(192, 64)), torch.ones(3, 1))


def test_transformers_dequantizes_to_our_numbers(golden_tensors: Golden) -> None:
    peer = golden_tensors("transformers_fp8_block")
    assert torch.equal(fp8.decode_blocks(peer["w_e4m3"], peer["scale_inv_f32"]), peer["out_fp32"])
    powers = peer["scale_ue8m0_u8"].view(torch.float8_e8m0fnu).float()
    assert torch.equal(fp8.decode_blocks(peer["w_e4m3"], powers).bfloat16(), peer["out_ue8m0_bf16"])


def test_transformers_quantizes_as_we_do_up_to_its_reciprocal(golden_tensors: Golden) -> None:
    peer = golden_tensors("transformers_fp8_quantize")
    codes, scale = fp8.encode_blocks(peer["w_bf16"].float())
    torch.testing.assert_close(scale, peer["float.weight_scale_inv"], rtol=2.5e-7, atol=0)
    ours, theirs = codes.float(), peer["float.weight_bytes"].view(fp8.E4M3).float()
    # Two roundings of the reciprocal may move a value that lies on a tie, by one code and hardly ever.
    assert ((ours - theirs).abs() <= theirs.abs() / 8 + 2**-9).all()
    assert (ours != theirs).float().mean() < 0.001


@given(st.integers(1, 300), st.integers(1, 300), st.floats(1e-4, 1e4), st.integers(0, 2**31))
def test_encoding_blocks_costs_at_most_half_a_code(n: int, k: int, size: float, seed: int) -> None:
    real = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale = fp8.encode_blocks(real)
    step = torch.maximum(codes.float().abs() / 16, torch.tensor(2.0**-10)) * fp8.expand_blocks(scale, n, k)
    assert ((fp8.decode_blocks(codes, scale) - real).abs() <= step * 1.001).all()


def test_a_zero_block_gets_a_scale_of_one() -> None:
    codes, scale = fp8.encode_blocks(torch.zeros(130, 5))
    assert scale.tolist() == [[1.0], [1.0]]
    assert not codes.float().any()


def test_an_all_zero_token_stays_zero_and_finite() -> None:
    x = torch.randn(3, 64)
    x[1] = 0
    seen = fp8.round_tokens(x)
    assert torch.isfinite(seen).all()
    assert not seen[1].any()


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_token_rounding_is_within_half_a_code_of_each_row(seed: int, size: float) -> None:
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(seed)) * size
    smallest = x.abs().amax(-1, keepdim=True) / 448 * 2.0**-10
    assert ((fp8.round_tokens(x) - x).abs() <= torch.maximum(x.abs() / 16, smallest) * 1.001).all()


def test_a_static_scale_multiplies_by_the_float32_reciprocal() -> None:
    """SGLang: x * (1 / s), not x / s; the two differ on some floats."""
    x, scale = torch.randn(4096) * 3, 0.0307617188
    expected = fp8.encode(x * (torch.tensor(1.0) / torch.tensor(scale))).float() * scale
    assert torch.equal(fp8.round_static(x, scale), expected)
    assert fp8.round_static(torch.tensor([1e9]), scale).item() == pytest.approx(448 * scale)
