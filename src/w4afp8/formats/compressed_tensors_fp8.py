"""compressed-tensors `float-quantized` in blocks: DeepSeek's FP8 under another name for the scale (formats: B3).

What stands beside int4 experts in a `mixed-precision` checkpoint.  `weight_scale` is the multiplier, one per
128 x 128 block, ragged edges counted as whole blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from w4afp8.formats._spec import BlockWeight, Part, WeightFormat, matrix
from w4afp8.numerics import fp8


def _unpack(parts: Mapping[str, Tensor]) -> BlockWeight:
    return BlockWeight(parts[".weight"], parts[".weight_scale"].to(torch.float32))


def _pack(weight: BlockWeight) -> dict[str, Tensor]:
    return {".weight": weight.codes_NK, ".weight_scale": weight.scale_RC}


WEIGHT = WeightFormat(
    name="compressed_tensors_fp8",
    bits=8,
    form=BlockWeight,
    parts=(Part(".weight", ("F8_E4M3",), matrix), Part(".weight_scale", ("F32", "BF16"), fp8.block_grid)),
    unpack=_unpack,
    pack=_pack,
)
