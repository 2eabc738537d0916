"""DeepSeek-V4 FP8: e4m3 codes, one E8M0 scale per 128 x 128 block under `.scale`, ragged edges cropped.

Agrees with: the published V4 headers (formats: A2).  V4-Flash-Base has the same scales in float32, which is read too.
Only scales that are powers of two can be written; another is refused by name, never rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.formats import bf16
from w4afp8.formats._spec import BlockWeight, Part, WeightFormat, matrix
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files
from w4afp8.numerics import e8m0, fp8


def _unpack(parts: Mapping[str, Tensor]) -> BlockWeight:
    scale = parts[".scale"]
    return BlockWeight(
        parts[".weight"], scale if scale.dtype == torch.float32 else e8m0.decode(scale.view(torch.uint8))
    )


def _pack(weight: BlockWeight) -> dict[str, Tensor]:
    return {".weight": weight.codes_NK, ".scale": e8m0.encode(weight.scale_RC).view(e8m0.E8M0)}


WEIGHT = WeightFormat(
    name="deepseek_ue8m0",
    bits=8,
    form=BlockWeight,
    parts=(Part(".weight", ("F8_E4M3",), matrix), Part(".scale", ("F8_E8M0", "F32"), fp8.block_grid)),
    unpack=_unpack,
    pack=_pack,
)


def config(source: Mapping[str, Any]) -> dict[str, Any]:
    """What every DeepSeek-V4 says; whether its experts are FP4 stands in `expert_dtype` and in the tensors."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "scale_fmt": "ue8m0",
        "weight_block_size": [fp8.BLOCK, fp8.BLOCK],
    }


CHECKPOINT = CheckpointFormat(
    name="deepseek_ue8m0",
    expert_weight=WEIGHT,
    linear_weights=(WEIGHT, bf16.WEIGHT),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=config,
    side_files=no_side_files,
    read_by=("SGLang (DeepSeek-V4 with FP8 experts)", "vLLM (DeepSeek-V4 with FP8 experts)"),
    scheme="FP8",
    expert_dtype="fp8",
)
