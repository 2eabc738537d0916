"""Each peer's bytes, as its own code wrote them once, read and written by our formats."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from w4afp8 import formats
from w4afp8.errors import FormatError, QuantizationError
from w4afp8.formats._spec import AwareWeight, GroupWeight, MicroWeight

Golden = Callable[[str], dict[str, Tensor]]
CT, MODELOPT = formats.get("compressed_tensors_w4a8"), formats.get("modelopt_w4a8_awq")
DEEPSEEK, CT_MX = formats.get("deepseek_mxfp4"), formats.get("compressed_tensors_mxfp4")


def test_a_word_by_hand() -> None:
    """The worked example of formats B3.1: element i in bits 4i..4i+3 as code + 8."""
    codes = torch.zeros(1, 128, dtype=torch.int8)
    codes[0, :8] = torch.tensor([-8, -7, -1, 0, 1, 2, 6, 7])
    words = CT.pack(GroupWeight(codes, torch.ones(1, 1)))[".weight_packed"]
    assert words[0, 0].item() & 0xFFFFFFFF == 0xFEA98710
    assert words[0, 1].item() & 0xFFFFFFFF == 0x88888888


def test_compressed_tensors_packs_to_our_words(golden_tensors: Golden) -> None:
    peer = golden_tensors("ct_pack_quantized_int4")
    codes = peer["q_int8"].reshape(-1, 128)  # rows of 64 put side by side: words never cross them
    parts = CT.pack(GroupWeight(codes, torch.ones(len(codes), 1)))
    assert torch.equal(parts[".weight_packed"], peer["ct_weight_packed"].reshape(-1, 16))
    assert parts[".weight_shape"].tolist() == [16, 128]
    again = CT.unpack(parts)
    assert isinstance(again, GroupWeight) and torch.equal(again.codes_NK, codes)


def test_a_scale_that_bfloat16_does_not_hold_is_named() -> None:
    scale = torch.tensor([[0.5, 0.1]])
    with pytest.raises(QuantizationError, match=r"scale \[0, 1\] is 0\.1.*bfloat16 does not hold"):
        CT.pack(GroupWeight(torch.zeros(1, 256, dtype=torch.int8), scale))


def test_a_weight_shape_that_lies_is_named() -> None:
    parts = CT.pack(GroupWeight(torch.zeros(2, 128, dtype=torch.int8), torch.ones(2, 1)))
    with pytest.raises(FormatError, match=r"weight_shape says \[2, 120\], the words hold \[2, 128\]"):
        CT.unpack(parts | {".weight_shape": torch.tensor([2, 120])})


def test_modelopt_packs_to_our_bytes(golden_tensors: Golden) -> None:
    peer = golden_tensors("int4_group_quantize")
    scale = torch.where(peer["amax_div7_f32"] == 0, 1.0, peer["amax_div7_f32"])
    parts = {
        ".weight": peer["modelopt.packed_outdim_u8"], ".weight_scale": scale, ".weight_scale_2": torch.tensor(0.5),
        ".input_scale": torch.tensor(2.0), ".pre_quant_scale": torch.ones(256, dtype=torch.bfloat16),
    }  # fmt: skip
    weight = MODELOPT.unpack(parts)
    assert isinstance(weight, AwareWeight)
    codes = (peer["w_bf16"].float() / scale.repeat_interleave(128, 1)).round().clamp(-8, 7).to(torch.int8)
    assert torch.equal(weight.group.codes_NK, codes)
    assert torch.equal(MODELOPT.pack(weight)[".weight"], peer["modelopt.packed_outdim_u8"])


def test_an_input_scale_left_beside_the_weight_is_part_of_it() -> None:
    group = GroupWeight(torch.ones(2, 128, dtype=torch.int8), torch.ones(2, 1))
    pre_scale = torch.arange(128).float()
    weight = AwareWeight(group, pre_scale, torch.tensor(1.0), torch.tensor(1.0))
    assert torch.equal(weight.dequantize(), pre_scale.expand(2, 128))


def test_every_gpt_oss_byte_reads_as_deepseeks_does(golden_tensors: Golden) -> None:
    """Blocks flattened over their last two axes are DeepSeek-V4's rows, so transformers' numbers are ours."""
    peer = golden_tensors("transformers_gptoss_mxfp4")
    for expert in range(2):
        parts = {
            ".weight": peer["blocks"][expert].flatten(-2).view(torch.int8),
            ".scale": peer["scales"][expert].view(torch.float8_e8m0fnu),
        }
        real = DEEPSEEK.unpack(parts).dequantize()
        assert torch.equal(real.to(torch.bfloat16), peer["out_bf16_EKN"][expert].T)


def test_transformers_reads_deepseek_v4_experts_to_our_numbers(golden_tensors: Golden) -> None:
    peer = golden_tensors("transformers_fp8_block")
    parts = {".weight": peer["fp4.w_int8"], ".scale": peer["fp4.scale_ue8m0_u8"].view(torch.float8_e8m0fnu)}
    assert torch.equal(DEEPSEEK.unpack(parts).dequantize(), peer["fp4.out_fp32"])


def test_the_two_mxfp4_formats_differ_in_names_only() -> None:
    weight = MicroWeight(torch.arange(256, dtype=torch.uint8).view(2, 128) % 16, torch.randint(0, 255, (2, 4)).byte())
    ours, theirs = DEEPSEEK.pack(weight), CT_MX.pack(weight)
    assert torch.equal(ours[".weight"].view(torch.uint8), theirs[".weight_packed"])
    assert torch.equal(ours[".scale"].view(torch.uint8), theirs[".weight_scale"])


def test_a_nan_scale_is_refused_when_it_is_multiplied_with() -> None:
    weight = MicroWeight(torch.zeros(1, 32, dtype=torch.uint8), torch.tensor([[255]], dtype=torch.uint8))
    assert DEEPSEEK.unpack(DEEPSEEK.pack(weight)).exponent_NG.item() == 255, "bytes are moved as bytes"  # type: ignore[attr-defined]
    with pytest.raises(QuantizationError, match="byte 255, which is NaN"):
        weight.dequantize()
