"""Weights stored as they are: bf16, and fp16 or fp32 where a source has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from w4afp8.formats._spec import Part, PlainWeight, WeightFormat, matrix


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
