"""DeepSeek-V4 experts: e2m1 codes, column 2j in the low nibble of byte j, one E8M0 scale per 32 inputs under `.scale`.

Agrees with: transformers 5.23 and the published V4 headers (formats: A2).  Decided by the tensors' dtypes, never by
`expert_dtype`, whose default differs between loaders.  Scale bytes are moved as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from w4afp8.formats import bf16, deepseek_fp8, deepseek_ue8m0
from w4afp8.formats._spec import MICRO_GROUP, MicroWeight, Part, WeightFormat, codes, scales
from w4afp8.formats._target import NO_INPUT_SCALE, CheckpointFormat, no_side_files
from w4afp8.numerics import e8m0


def _unpack(parts: Mapping[str, Tensor]) -> MicroWeight:
    return MicroWeight.packed(parts[".weight"], parts[".scale"].view(torch.uint8))


def _pack(weight: MicroWeight) -> dict[str, Tensor]:
    return {".weight": weight.bytes_NJ.view(torch.int8), ".scale": weight.exponent_NG.view(e8m0.E8M0)}


WEIGHT = WeightFormat(
    name="deepseek_mxfp4",
    bits=4,
    form=MicroWeight,
    parts=(Part(".weight", ("I8", "U8"), codes(2, MICRO_GROUP)), Part(".scale", ("F8_E8M0",), scales(MICRO_GROUP))),
    unpack=_unpack,
    pack=_pack,
)

CHECKPOINT = CheckpointFormat(
    name="deepseek_mxfp4",
    expert_weight=WEIGHT,
    linear_weights=(deepseek_ue8m0.WEIGHT, deepseek_fp8.WEIGHT, bf16.WEIGHT),
    input_scale=NO_INPUT_SCALE,
    partial_experts=None,
    quantization_config=deepseek_ue8m0.config,
    side_files=no_side_files,
    read_by=("SGLang (DeepSeek-V4)", "vLLM (DeepSeek-V4)"),
    scheme="MXFP4",
    expert_dtype="fp4",
)
