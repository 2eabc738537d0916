"""compressed-tensors `mxfp4-pack-quantized`: DeepSeek-V4's bytes under other names and dtypes (formats: B3.2).

Agrees with: compressed-tensors 0.20.0.  `weight_packed` is low-even e2m1, `weight_scale` the biased exponents as uint8.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from w4afp8.formats._spec import MICRO_GROUP, MicroWeight, Part, WeightFormat
from w4afp8.numerics import groups


def _packed(n: int, k: int) -> tuple[int, ...]:
    groups.count(k, MICRO_GROUP)
    return (n, k // 2)


def _scales(n: int, k: int) -> tuple[int, ...]:
    return (n, groups.count(k, MICRO_GROUP))


def _unpack(parts: Mapping[str, Tensor]) -> MicroWeight:
    return MicroWeight.packed(parts[".weight_packed"], parts[".weight_scale"])


def _pack(weight: MicroWeight) -> dict[str, Tensor]:
    return {".weight_packed": weight.bytes_NJ, ".weight_scale": weight.exponent_NG}


WEIGHT = WeightFormat(
    name="compressed_tensors_mxfp4",
    bits=4,
    form=MicroWeight,
    parts=(Part(".weight_packed", ("U8",), _packed), Part(".weight_scale", ("U8",), _scales)),
    unpack=_unpack,
    pack=_pack,
)
