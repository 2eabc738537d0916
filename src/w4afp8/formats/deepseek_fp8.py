"""DeepSeek-V3/R1/V3.1 FP8: e4m3 codes, one float32 scale per 128 x 128 block, ragged edges cropped.

`weight_scale_inv` is the multiplier, whatever its name says (formats: A1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.formats import bf16
from w4afp8.formats._spec import BlockWeight, Part, WeightFormat, matrix
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files
from w4afp8.numerics import fp8


def _unpack(parts: Mapping[str, Tensor]) -> BlockWeight:
    return BlockWeight(parts[".weight"], parts[".weight_scale_inv"].to(torch.float32))


def _pack(weight: BlockWeight) -> dict[str, Tensor]:
    return {".weight": weight.codes_NK, ".weight_scale_inv": weight.scale_RC}


def _encode(real_NK: Tensor) -> BlockWeight:
    return BlockWeight(*fp8.encode_blocks(real_NK))


WEIGHT = WeightFormat(
    name="deepseek_fp8",
    bits=8,
    form=BlockWeight,
    parts=(Part(".weight", ("F8_E4M3",), matrix), Part(".weight_scale_inv", ("F32",), fp8.block_grid)),
    unpack=_unpack,
    pack=_pack,
    encode=_encode,
)


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [fp8.BLOCK, fp8.BLOCK],
    }


CHECKPOINT = CheckpointFormat(
    name="deepseek_fp8",
    expert_weight=WEIGHT,
    linear_weights=(WEIGHT, bf16.WEIGHT),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=_config,
    side_files=no_side_files,
    read_by=("SGLang (DeepSeek-V3)", "vLLM (DeepSeek-V3)", "TensorRT-LLM (DeepSeek-V3)"),
    scheme="FP8",
)
