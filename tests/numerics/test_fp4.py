"""e2m1: by hand, every code and byte, and as the peers round and pack it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.numerics import e8m0, fp4

Golden = Callable[[str], dict[str, Tensor]]
CODES = torch.arange(16, dtype=torch.uint8)


def decode_by_hand(code: int) -> float:
    """OCP FP4 e2m1: sign, 2 bits of exponent (bias 1), 1 of mantissa."""
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
    return sign * (mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def test_every_code_means_what_the_standard_says() -> None:
    assert fp4.decode(CODES).tolist() == [decode_by_hand(code) for code in range(16)]
    assert torch.signbit(fp4.decode(CODES)).tolist() == [False] * 8 + [True] * 8, "code 8 is -0"


def test_every_code_survives_decode_and_encode_but_minus_zero() -> None:
    assert fp4.encode(fp4.decode(CODES)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15]


def test_compressed_tensors_rounds_to_the_same_codes(golden: Path) -> None:
    table = json.loads((golden / "numeric_tables.json").read_text())
    values = torch.tensor([float(v) for v in table["values"]])
    ours = fp4.encode(values)
    assert ours.tolist() == table["e2m1_codes"]["compressed-tensors 0.20.0 cast_to_fp4 + pack_fp4_to_uint8"]
    for name, codes in table["e2m1_codes"].items():  # the other peers differ on ties, and only there
        theirs = fp4.decode(torch.tensor(codes, dtype=torch.uint8))
        assert torch.equal((theirs - values).abs(), (fp4.decode(ours) - values).abs()), name


@given(st.floats(-8, 8, width=32))
def test_encode_takes_a_nearest_code(value: float) -> None:
    clipped = max(-6.0, min(6.0, value))
    found = fp4.decode(fp4.encode(torch.tensor([value]))).item()
    assert abs(found - clipped) == (fp4.decode(CODES).double() - clipped).abs().min().item()


def test_what_is_too_large_saturates_and_nan_is_named() -> None:
    assert fp4.encode(torch.tensor([6.1, 1e30, float("inf"), -7.0])).tolist() == [7, 7, 7, 15]
    with pytest.raises(QuantizationError, match=r"value \[0, 1\] is NaN"):
        fp4.encode(torch.tensor([[1.0, float("nan")]]))


def test_golden_byte() -> None:  # by hand: 6 is 7, -0.5 is 9, the even column is low
    assert fp4.pack_low_first(fp4.encode(torch.tensor([[6.0, -0.5]]))).tolist() == [[0x97]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_every_byte_survives(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)[None]
    codes = fp4.unpack_low_first(every.view(dtype))
    assert codes.flatten().tolist() == [nibble for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert torch.equal(fp4.pack_low_first(codes), every)


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(QuantizationError, match="3 columns"):
        fp4.pack_low_first(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(QuantizationError, match="int8, expected uint8"):
        fp4.pack_low_first(torch.zeros(2, 4, dtype=torch.int8))
    with pytest.raises(QuantizationError, match=r"code \[0, 1\] is 16"):
        fp4.pack_low_first(torch.tensor([[0, 16]], dtype=torch.uint8))


def test_transformers_decodes_gpt_oss_blocks_to_our_numbers(golden_tensors: Golden) -> None:
    """Blocks [E, N, G, 16] flattened over the last two axes are low-even rows; transformers transposes the result."""
    peer = golden_tensors("transformers_gptoss_mxfp4")
    for prefix, out in (("", "out_bf16_EKN"), ("all_bytes.", "all_bytes.out_bf16")):
        blocks, scales = peer[f"{prefix}blocks"], peer[f"{prefix}scales"]
        assert int(scales.max()) < e8m0.NAN
        real = fp4.decode(fp4.unpack_low_first(blocks)) * e8m0.decode(scales)[..., None]
        assert torch.equal(real.flatten(-2).to(torch.bfloat16).mT, peer[out])


def test_transformers_decodes_deepseek_v4_experts_to_our_numbers(golden_tensors: Golden) -> None:
    peer = golden_tensors("transformers_fp8_block")
    real = fp4.decode(fp4.unpack_low_first(peer["fp4.w_int8"])).view(64, 4, 32)
    scale = e8m0.decode(peer["fp4.scale_ue8m0_u8"])
    assert torch.equal((real * scale[..., None]).view(64, 128), peer["fp4.out_fp32"])
