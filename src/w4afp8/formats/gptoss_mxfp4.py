"""GPT-OSS: e2m1 in `_blocks` of 32 inputs, 16 bytes each, and a `_scales` byte beside every block.

Agrees with: transformers 5.23 `convert_moe_packed_tensors` (formats: A3).  Byte j of a block holds input 2j in its low
nibble: the blocks of a row, one after the other, are the bytes of `deepseek_mxfp4`.  A layer's experts are stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from w4afp8.formats import bf16
from w4afp8.formats._spec import MICRO_GROUP, MicroWeight, Part, WeightFormat, scales
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files
from w4afp8.numerics import groups


def _blocks(n: int, k: int) -> tuple[int, ...]:
    return (n, groups.count(k, MICRO_GROUP), MICRO_GROUP // 2)


def _unpack(parts: Mapping[str, Tensor]) -> MicroWeight:
    return MicroWeight.packed(parts["_blocks"].flatten(-2), parts["_scales"])


def _pack(weight: MicroWeight) -> dict[str, Tensor]:
    blocks = weight.bytes_NJ.reshape(*weight.exponent_NG.shape, MICRO_GROUP // 2)
    return {"_blocks": blocks, "_scales": weight.exponent_NG}


WEIGHT = WeightFormat(
    name="gptoss_mxfp4",
    bits=4,
    form=MicroWeight,
    parts=(Part("_blocks", ("U8",), _blocks), Part("_scales", ("U8",), scales(MICRO_GROUP))),
    unpack=_unpack,
    pack=_pack,
)

# Everything but the experts, as the published checkpoints name it.
KEPT = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"modules_to_not_convert": list(KEPT), "quant_method": "mxfp4"}


CHECKPOINT = CheckpointFormat(
    name="gptoss_mxfp4",
    expert_weight=WEIGHT,
    linear_weights=(bf16.WEIGHT,),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=_config,
    side_files=no_side_files,
    read_by=("vLLM (gpt-oss)", "SGLang (gpt-oss)", "transformers (gpt-oss)"),
    stacked=True,
    scheme="MXFP4",
)
