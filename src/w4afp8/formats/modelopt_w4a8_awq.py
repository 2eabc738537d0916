"""NVIDIA ModelOpt W4A8_AWQ: int4 in groups of 128, two output rows in each byte, AWQ's input scale beside the weight.

Agrees with: ModelOpt 0.47 `pack_int4_in_uint8` and TensorRT-LLM's VANILLA loading (formats: B4).  Byte (n', k) holds
row 2n' in its low nibble and row 2n'+1 in its high one, two's complement.  real = code * weight_scale, and the input is
multiplied by pre_quant_scale first; weight_scale_2 and input_scale are the two amax / 448 of the FP8 product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.errors import QuantizationError
from w4afp8.formats import bf16, deepseek_fp8
from w4afp8.formats._spec import AwareWeight, GroupWeight, Part, WeightFormat, scales
from w4afp8.formats._target import CheckpointFormat, InputScale
from w4afp8.formats._trtllm import mixed_layers
from w4afp8.numerics import groups


def _packed(n: int, k: int) -> tuple[int, ...]:
    groups.count(k)
    if n % 2:
        raise QuantizationError(f"N = {n} is odd; two output rows share a byte")
    return (n // 2, k)


def _scalar(n: int, k: int) -> tuple[int, ...]:
    return ()


def _per_input(n: int, k: int) -> tuple[int, ...]:
    return (k,)


def _unpack(parts: Mapping[str, Tensor]) -> AwareWeight:
    raw = parts[".weight"].view(torch.uint8)
    even, odd = raw[:, 0::2], raw[:, 1::2]  # columns; the rows are in the nibbles
    upper, lower = (even & 0xF) | (odd << 4), (even >> 4) | (odd & 0xF0)
    return AwareWeight(
        GroupWeight.packed(torch.stack((upper, lower), 1).flatten(0, 1), parts[".weight_scale"].to(torch.float32)),
        pre_scale_K=parts[".pre_quant_scale"],
        scale_2=parts[".weight_scale_2"],
        input_scale=parts[".input_scale"],
    )


def _pack(weight: AwareWeight) -> dict[str, Tensor]:
    upper, lower = weight.group.bytes_NJ[0::2], weight.group.bytes_NJ[1::2]
    even, odd = (upper & 0xF) | (lower << 4), (upper >> 4) | (lower & 0xF0)
    return {
        ".weight": torch.stack((even, odd), 2).flatten(1, 2),
        ".weight_scale": weight.group.scale_NG,
        ".weight_scale_2": weight.scale_2,
        ".input_scale": weight.input_scale,
        ".pre_quant_scale": weight.pre_scale_K,
    }


WEIGHT = WeightFormat(
    name="modelopt_w4a8_awq",
    bits=4,
    form=AwareWeight,
    parts=(
        Part(".weight", ("U8",), _packed),
        Part(".weight_scale", ("F32",), scales()),
        Part(".weight_scale_2", ("F32",), _scalar),
        Part(".input_scale", ("F32",), _scalar),
        Part(".pre_quant_scale", ("BF16", "F16", "F32"), _per_input),
    ),
    unpack=_unpack,
    pack=_pack,
)

INPUT_SCALE_NAMES = {projection: projection for projection in ("gate_proj", "down_proj", "up_proj")}
W4A8 = {"quant_algo": "W4A8_AWQ", "group_size": groups.GROUP, "has_zero_point": False, "pre_quant_scale": True}
PLAIN_LINEARS = ("*self_attn*", "*shared_experts*", "*mlp.gate", "*mlp.gate_proj", "*mlp.up_proj", "*mlp.down_proj",
                 "*eh_proj", "*shared_head*", "lm_head")  # fmt: skip


def _quantization(source: Mapping[str, Any]) -> dict[str, Any]:
    """FP8 linears: two algorithms, so each layer says its own (side files)."""
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}


def _plain_config(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"quant_method": "modelopt", **W4A8, "kv_cache_quant_algo": None, "exclude_modules": list(PLAIN_LINEARS)}


def _side_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json, which ModelOpt's readers look at first, and for mixed layers the list of them."""
    said = {key: value for key, value in config["quantization_config"].items() if key != "quant_method"}
    found = {"hf_quant_config.json": {"producer": {"name": "w4afp8"}, "quantization": said}}
    if said["quant_algo"] != "MIXED_PRECISION":
        return found
    return {**found, "quant_cfg.json": {**said, "quantized_layers": mixed_layers(config, W4A8)}}


CHECKPOINT = CheckpointFormat(
    name="modelopt_w4a8_awq",
    expert_weight=WEIGHT,
    linear_weights=(deepseek_fp8.WEIGHT, bf16.WEIGHT),
    input_scale=InputScale("", INPUT_SCALE_NAMES, within=True),
    partial_experts=None,
    quantization_config=_quantization,
    plain_config=_plain_config,
    side_files=_side_files,
    read_by=("TensorRT-LLM (W4A8_AWQ, VANILLA loading)",),
)
