"""compressed-tensors `pack-quantized`, int4 weights in groups of 128, as vLLM and SGLang load W4AFP8.

Agrees with: compressed-tensors 0.20.0 `pack_to_int32` and SGLang 0.5.23's repack (formats: B3.1).  Element i of eight
along K stands in bits 4i..4i+3 of a 32-bit word as code + 8; the words' bytes are the `sglang_w4afp8` weight with every
nibble's top bit flipped.  Scales are in the model's dtype: bfloat16 is what is written, and a scale that bfloat16 does
not hold is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.formats._spec import GroupWeight, Part, WeightFormat
from w4afp8.numerics import groups, int4

PER_WORD = 8


def _words(n: int, k: int) -> tuple[int, ...]:
    groups.count(k)
    return (n, k // PER_WORD)


def _scales(n: int, k: int) -> tuple[int, ...]:
    return (n, groups.count(k))


def _two(n: int, k: int) -> tuple[int, ...]:
    return (2,)


def _unpack(parts: Mapping[str, Tensor]) -> GroupWeight:
    low_even = int4.to_offset_binary(parts[".weight_packed"].contiguous().view(torch.uint8))
    codes_NK = int4.unpack_low_first(low_even)
    said = parts[".weight_shape"].tolist()
    if said != list(codes_NK.shape):
        raise FormatError(f"weight_shape says {said}, the words hold {list(codes_NK.shape)}; the shard is damaged")
    return GroupWeight(codes_NK, parts[".weight_scale"].to(torch.float32))


def _pack(weight: GroupWeight) -> dict[str, Tensor]:
    low_even = int4.pack_low_first(weight.codes_NK).contiguous()
    return {
        ".weight_packed": int4.to_offset_binary(low_even).view(torch.int32),
        ".weight_scale": groups.exactly_bf16(weight.scale_NG),
        ".weight_shape": torch.tensor(weight.codes_NK.shape, dtype=torch.int64),
    }


WEIGHT = WeightFormat(
    name="compressed_tensors_w4a8",
    bits=4,
    form=GroupWeight,
    parts=(
        Part(".weight_packed", ("I32",), _words),
        Part(".weight_scale", ("BF16", "F16", "F32"), _scales),
        Part(".weight_shape", ("I64",), _two),
    ),
    unpack=_unpack,
    pack=_pack,
)
