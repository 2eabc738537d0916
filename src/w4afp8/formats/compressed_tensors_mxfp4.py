"""compressed-tensors `mxfp4-pack-quantized`: DeepSeek-V4's bytes under other names and dtypes (formats: B3.2).

Agrees with: compressed-tensors 0.20.0.  `weight_packed` is low-even e2m1, `weight_scale` the biased exponents as uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from w4afp8.formats import bf16, compressed_tensors_fp8
from w4afp8.formats._compressed_tensors import beside_blocks, beside_sixteen_bits
from w4afp8.formats._spec import MICRO_GROUP, MicroWeight, Part, WeightFormat, codes, scales
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files


def _unpack(parts: Mapping[str, Tensor]) -> MicroWeight:
    return MicroWeight.packed(parts[".weight_packed"], parts[".weight_scale"])


def _pack(weight: MicroWeight) -> dict[str, Tensor]:
    return {".weight_packed": weight.bytes_NJ, ".weight_scale": weight.exponent_NG}


WEIGHT = WeightFormat(
    name="compressed_tensors_mxfp4",
    bits=4,
    form=MicroWeight,
    parts=(Part(".weight_packed", ("U8",), codes(2, MICRO_GROUP)), Part(".weight_scale", ("U8",), scales(MICRO_GROUP))),
    unpack=_unpack,
    pack=_pack,
)

EXPERTS = {
    "targets": ["Linear"],
    "format": "mxfp4-pack-quantized",
    "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": MICRO_GROUP, "symmetric": True,
                "dynamic": False, "scale_dtype": "torch.uint8"},
}  # fmt: skip


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    return beside_blocks(EXPERTS)


def _plain_config(source: Mapping[str, Any]) -> dict[str, Any]:
    return beside_sixteen_bits(EXPERTS)


CHECKPOINT = CheckpointFormat(
    name="compressed_tensors_mxfp4",
    expert_weight=WEIGHT,
    linear_weights=(compressed_tensors_fp8.WEIGHT, bf16.WEIGHT),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=_config,
    plain_config=_plain_config,
    side_files=no_side_files,
    read_by=("vLLM (compressed-tensors)",),  # SGLang 0.5.23 too where linears have 16 bits
    scheme="MXFP4",
    expert_dtype="fp4",
)
