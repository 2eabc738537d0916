"""compressed-tensors `pack-quantized`, int4 weights in groups of 32 and nothing said of activations: Kimi-K2-Thinking.

The words are those of `compressed_tensors_w4a8`; the scales are four times as many.  Where the four of every 128 inputs
are equal they are one scale of 128.  A pack-quantized checkpoint in groups of 128 is `compressed_tensors_w4a8` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.formats import bf16
from w4afp8.formats import compressed_tensors_w4a8 as words
from w4afp8.formats._compressed_tensors import beside_sixteen_bits
from w4afp8.formats._spec import FINE_GROUP, FineWeight, Part, WeightFormat, codes, scales
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files


def _two(n: int, k: int) -> tuple[int, ...]:
    return (2,)


def _unpack(parts: Mapping[str, Tensor]) -> FineWeight:
    return FineWeight(words.unpack_words(parts), parts[".weight_scale"].to(torch.float32))


def _pack(weight: FineWeight) -> dict[str, Tensor]:
    return words.pack_words(weight.bytes_NJ, weight.scale_NG)


WEIGHT = WeightFormat(
    name="compressed_tensors_int4",
    bits=4,
    form=FineWeight,
    parts=(
        Part(".weight_packed", ("I32",), codes(words.PER_WORD, FINE_GROUP)),
        Part(".weight_scale", ("BF16", "F16", "F32"), scales(FINE_GROUP)),
        Part(".weight_shape", ("I64", "I32"), _two),
    ),
    unpack=_unpack,
    pack=_pack,
)

EXPERTS = {
    "targets": ["Linear"],
    "format": "pack-quantized",
    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": FINE_GROUP, "symmetric": True,
                "dynamic": False},
}  # fmt: skip


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    return beside_sixteen_bits(EXPERTS)


CHECKPOINT = CheckpointFormat(
    name="compressed_tensors_int4",
    expert_weight=WEIGHT,
    linear_weights=(bf16.WEIGHT,),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=_config,
    side_files=no_side_files,
    read_by=("vLLM (Kimi-K2-Thinking)", "SGLang (Kimi-K2-Thinking)"),
    written=False,
)
