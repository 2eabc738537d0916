"""Our bytes, read by SGLang's rules."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w4afp8 import formats
from w4afp8.formats._spec import GroupWeight

Golden = Callable[[str], dict[str, Tensor]]
WEIGHT, CHECKPOINT = formats.get("sglang_w4afp8"), formats.target("sglang_w4afp8")


def test_nibbles_by_hand() -> None:
    """w[n, k] = nibble * scale[n, k // 128]; element 2j low, 2j + 1 high, two's complement."""
    codes = torch.zeros(1, 128, dtype=torch.int8)
    codes[0, :4] = torch.tensor([1, -1, -8, 7])
    parts = WEIGHT.pack(GroupWeight(codes, torch.tensor([[0.5]])))
    assert parts[".weight"].dtype == torch.int8
    assert parts[".weight"].view(torch.uint8)[0, :3].tolist() == [0xF1, 0x78, 0x00]
    assert parts[".weight_scale_inv"].tolist() == [[0.5]]
    assert WEIGHT.unpack(parts).dequantize()[0, :5].tolist() == [0.5, -0.5, -4.0, 3.5, 0.0]


def test_a_matrix_whose_rows_are_their_number_shows_no_swap() -> None:
    """Catches columns or rows read in another order: code = row on even columns, -row on odd ones."""
    rows = torch.arange(8, dtype=torch.int8)[:, None].expand(8, 256).clone()
    rows[:, 1::2] *= -1
    packed = WEIGHT.pack(GroupWeight(rows, torch.ones(8, 2)))[".weight"].view(torch.uint8).tolist()
    for n in range(8):
        assert packed[n] == [(n & 15) | ((-n & 15) << 4)] * 128


def test_a_readers_own_loop_decodes_our_bytes() -> None:
    """An independent reader: one byte at a time, in plain Python."""
    codes, scale = torch.randint(-8, 8, (3, 256), dtype=torch.int8), torch.rand(3, 2)
    parts = WEIGHT.pack(GroupWeight(codes, scale))
    expected = (codes.float() * scale.repeat_interleave(128, 1)).tolist()
    for n in range(3):
        row = bytes(parts[".weight"][n].view(torch.uint8).tolist())
        scales = struct.unpack("2f", bytes(parts[".weight_scale_inv"][n].view(torch.uint8).tolist()))
        for j, byte in enumerate(row):
            for k, nibble in ((2 * j, byte & 15), (2 * j + 1, byte >> 4)):
                signed = nibble - 16 if nibble > 7 else nibble
                assert abs(signed * scales[k // 128] - expected[n][k]) <= 1e-6


def test_sglang_loads_our_scales_to_its_runtime_tensors(golden_tensors: Golden) -> None:
    """`process_weights_after_loading` casts [N, G] to bf16 and interleaves by 4 along G (1 when G is no multiple of 4).

    A scale that is a bf16 already loses nothing there, which is why ours are.
    """
    peer = golden_tensors("sglang_w4afp8_process_weights")
    for site, four in (("w13", 4), ("w2", 1)):
        scale = peer[f"in.{site}_weight_scale_inv"]
        e, n, g = scale.shape
        packed = WEIGHT.pack(GroupWeight(torch.zeros(n, g * 128, dtype=torch.int8), scale[0]))
        assert torch.equal(packed[".weight_scale_inv"], scale[0])
        assert WEIGHT.specs("x", n, g * 128)[1].shape == (n, g)
        per_expert = scale.bfloat16().view(e, n, g // four, four).permute(0, 2, 1, 3).reshape(e, g // four, n * four)
        assert torch.equal(per_expert, peer[f"out.{site}_weight_scale_inv"])


def test_sglang_takes_the_maximum_of_our_activation_scales(golden_tensors: Golden) -> None:
    """One number per layer and GEMM, written for every expert, is its own maximum on any rank."""
    peer = golden_tensors("sglang_w4afp8_process_weights")
    for site in ("w13", "w2"):
        assert peer[f"in.{site}_input_scale"].float().max() == peer[f"out.{site}_input_scale"][0]


def test_activation_scales_stand_under_w1_w2_w3() -> None:
    rule = CHECKPOINT.input_scale
    stem = "model.layers.3.mlp.experts.7"
    assert rule.tensor_name(stem, "gate_proj") == f"{stem}.w1.input_scale"
    assert rule.tensor_name(stem, "down_proj") == f"{stem}.w2.input_scale"
    assert rule.tensor_name(stem, "up_proj") == f"{stem}.w3.input_scale"
    assert rule.file == "act_scales.safetensors"


def test_shapes_of_r1() -> None:
    assert [(s.dtype, s.shape) for s in WEIGHT.specs("x", 2048, 7168)] == [("I8", (2048, 3584)), ("F32", (2048, 56))]
    assert [(s.dtype, s.shape) for s in WEIGHT.specs("x", 7168, 2048)] == [("I8", (7168, 1024)), ("F32", (7168, 16))]


def test_the_config_makes_sglang_choose_w4afp8(miniature_config: dict[str, Any]) -> None:
    """The source's `quant_method: fp8` must not survive: it would win over everything else."""
    assert CHECKPOINT.quantization_config(miniature_config)["quant_method"] == "w4afp8"
    assert CHECKPOINT.quantization_config(miniature_config)["group_size"] == 128
    assert CHECKPOINT.partial_experts is None


def test_side_files_name_every_module_of_every_layer(miniature_config: dict[str, Any]) -> None:
    files = CHECKPOINT.side_files(miniature_config)
    assert files["hf_quant_config.json"] == {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    }
    layers = files["quant_cfg.json"]["quantized_layers"]
    assert {name for name, rule in layers.items() if rule["quant_algo"] == "W4A8_AWQ"} == {
        f"model.layers.{i}.mlp.experts" for i in range(1, 5)
    }
    assert layers["model.layers.0.mlp.gate_up_proj"] == {"quant_algo": "FP8_BLOCK_SCALES"}
    assert layers["model.layers.4.mlp.shared_experts.down_proj"] == {"quant_algo": "FP8_BLOCK_SCALES"}
    assert sum("self_attn" in name for name in layers) == 5 * 4
