"""Weights stored as they are: bf16, and fp16 or fp32 where a source has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from w4afp8.formats._spec import Part, PlainWeight, WeightFormat, matrix
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files


def _unpack(parts: Mapping[str, Tensor]) -> PlainWeight:
    return PlainWeight(parts[".weight"])


def _pack(weight: PlainWeight) -> dict[str, Tensor]:
    return {".weight": weight.real_NK}


WEIGHT = WeightFormat(
    name="bf16",
    bits=16,
    form=PlainWeight,
    parts=(Part(".weight", ("BF16", "F16", "F32"), matrix),),
    unpack=_unpack,
    pack=_pack,
)


def _no_config(source: Mapping[str, Any]) -> dict[str, Any]:
    return {}


CHECKPOINT = CheckpointFormat(
    name="bf16",
    expert_weight=WEIGHT,
    linear_weights=(WEIGHT,),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=_no_config,
    side_files=no_side_files,
    read_by=("vLLM", "SGLang"),
    scheme="none",
)
