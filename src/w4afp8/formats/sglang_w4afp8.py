"""SGLang `w4afp8`: int4 routed experts with one scale per 128 inputs, static FP8 activation scales, FP8 elsewhere.

Agrees with: SGLang 0.5.23 `W4AFp8Config` / `W4AFp8MoEMethod` and TensorRT-LLM's quantize_mixed_precision_moe.py
(formats: B1).  Weights are two's complement, column 2j in the low nibble of byte j; `weight_scale_inv` is the
multiplier; activation scales stand under w1, w2, w3 beside weights named gate, down, up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.formats import deepseek_fp8
from w4afp8.formats._spec import GroupWeight, Part, WeightFormat, codes, scales
from w4afp8.formats._target import CheckpointFormat, InputScale
from w4afp8.formats._trtllm import mixed_layers
from w4afp8.numerics import groups

INPUT_SCALE_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
ACTIVATION_SCALES_FILE = "act_scales.safetensors"
EXPERTS = {"quant_algo": "W4A8_AWQ", "group_size": groups.GROUP}


def _unpack(parts: Mapping[str, Tensor]) -> GroupWeight:
    return GroupWeight.packed(parts[".weight"], parts[".weight_scale_inv"].to(torch.float32))


def _pack(weight: GroupWeight) -> dict[str, Tensor]:
    return {".weight": weight.bytes_NJ.view(torch.int8), ".weight_scale_inv": weight.scale_NG}


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    """SGLang reads `quant_method` and hard-codes the rest; the rest is here for people."""
    return {
        "quant_method": "w4afp8",
        "activation_scheme": "static",
        "linear_activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "group_size": groups.GROUP,
        **({"mtp_experts": "int4"} if source.get("num_nextn_predict_layers") else {}),
    }


def _side_files(source: Mapping[str, Any]) -> dict[str, Any]:
    """The two files beside config.json by which TensorRT-LLM tells experts (int4) from the rest (FP8 blocks)."""
    mixed = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    return {
        "hf_quant_config.json": {"quantization": dict(mixed)},
        "quant_cfg.json": {**mixed, "quantized_layers": mixed_layers(source, EXPERTS)},
    }


WEIGHT = WeightFormat(
    name="sglang_w4afp8",
    bits=4,
    form=GroupWeight,
    parts=(Part(".weight", ("I8",), codes(2)), Part(".weight_scale_inv", ("F32",), scales())),
    unpack=_unpack,
    pack=_pack,
)

CHECKPOINT = CheckpointFormat(
    name="sglang_w4afp8",
    expert_weight=WEIGHT,
    linear_weights=(deepseek_fp8.WEIGHT,),
    input_scale=InputScale(ACTIVATION_SCALES_FILE, INPUT_SCALE_NAMES),
    partial_experts=None,
    quantization_config=_config,
    side_files=_side_files,
    read_by=("SGLang >= 0.5 (--quantization is detected)", "TensorRT-LLM (W4A8_CUSTOM)"),
)
