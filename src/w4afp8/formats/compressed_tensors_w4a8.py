"""compressed-tensors `pack-quantized`, int4 weights in groups of 128, as vLLM and SGLang load W4AFP8.

Agrees with: compressed-tensors 0.20.0 `pack_to_int32` and SGLang 0.5.23's repack (formats: B3.1).  Element i of eight
along K stands in bits 4i..4i+3 of a 32-bit word as code + 8; the words' bytes are the `sglang_w4afp8` weight with every
nibble's top bit flipped.  Scales are in the model's dtype: bfloat16 is what is written, and a scale that bfloat16 does
not hold is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.formats import bf16, compressed_tensors_fp8
from w4afp8.formats._compressed_tensors import ACTIVATIONS, beside_blocks, beside_sixteen_bits
from w4afp8.formats._spec import GroupWeight, Part, WeightFormat, codes, scales
from w4afp8.formats._target import CheckpointFormat, InputScale, no_side_files
from w4afp8.formats.sglang_w4afp8 import INPUT_SCALE_NAMES
from w4afp8.numerics import groups, int4

PER_WORD = 8
# Activations are scaled per token, no engine reads static scales; they are kept for the way back to a format with them.
KEPT_SCALES_FILE = "w4afp8/act_scales.safetensors"
EXPERTS = {
    "targets": ["Linear"],
    "format": "pack-quantized",
    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": groups.GROUP, "symmetric": True,
                "dynamic": False},
    "input_activations": {**ACTIVATIONS, "strategy": "token"},
}  # fmt: skip


def _two(n: int, k: int) -> tuple[int, ...]:
    return (2,)


def unpack_words(parts: Mapping[str, Tensor]) -> Tensor:
    """The words as low-even two's complement bytes: uint8 [N, K/2].  Raises: FormatError when weight_shape lies."""
    bytes_NJ = int4.to_offset_binary(parts[".weight_packed"].contiguous().view(torch.uint8))
    said, held = parts[".weight_shape"].tolist(), [bytes_NJ.shape[0], 2 * bytes_NJ.shape[1]]
    if said != held:
        raise FormatError(f"weight_shape says {said}, the words hold {held}; the shard is damaged", ".weight_shape")
    return bytes_NJ


def pack_words(bytes_NJ: Tensor, scale_NG: Tensor) -> dict[str, Tensor]:
    """Undo `unpack_words`: the words, the scales in the model's 16 bits, the shape."""
    n, j = bytes_NJ.shape
    return {
        ".weight_packed": int4.to_offset_binary(bytes_NJ.contiguous()).view(torch.int32),
        ".weight_scale": groups.exactly_bf16(scale_NG),
        ".weight_shape": torch.tensor([n, 2 * j], dtype=torch.int64),
    }


def _unpack(parts: Mapping[str, Tensor]) -> GroupWeight:
    return GroupWeight.packed(unpack_words(parts), parts[".weight_scale"].to(torch.float32))


def _pack(weight: GroupWeight) -> dict[str, Tensor]:
    return pack_words(weight.bytes_NJ, weight.scale_NG)


def _config(source: Mapping[str, Any]) -> dict[str, Any]:
    return beside_blocks(EXPERTS)


def _plain_config(source: Mapping[str, Any]) -> dict[str, Any]:
    return beside_sixteen_bits(EXPERTS)


WEIGHT = WeightFormat(
    name="compressed_tensors_w4a8",
    bits=4,
    form=GroupWeight,
    parts=(
        Part(".weight_packed", ("I32",), codes(PER_WORD)),
        Part(".weight_scale", ("BF16", "F16", "F32"), scales()),
        Part(".weight_shape", ("I64",), _two),
    ),
    unpack=_unpack,
    pack=_pack,
)

CHECKPOINT = CheckpointFormat(
    name="compressed_tensors_w4a8",
    expert_weight=WEIGHT,
    linear_weights=(compressed_tensors_fp8.WEIGHT, bf16.WEIGHT),
    input_scale=InputScale(KEPT_SCALES_FILE, INPUT_SCALE_NAMES, indexed=False),
    partial_experts=None,
    quantization_config=_config,
    plain_config=_plain_config,
    side_files=no_side_files,
    read_by=("vLLM (compressed-tensors)",),  # SGLang 0.5.23 too where linears have 16 bits
)
