"""The same numbers in another middle form, or a refusal that names the first one that does not fit.

One function per pair; `_conversion` says in words what each of them may refuse.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.formats._spec import (
    FINE_GROUP,
    AwareWeight,
    BlockWeight,
    FineWeight,
    GroupWeight,
    MicroWeight,
    PlainWeight,
    Weight,
)
from w4afp8.numerics import fold, groups

# ModelOpt's amax / 448 of a weight whose largest group scale is amax / 7: a division by 64, so no bit is lost.
SCALE_2 = 64.0
COARSER = groups.GROUP // FINE_GROUP


def move(weight: Weight, form: type[Weight], input_scale: Tensor | None = None) -> Weight:
    """`weight` as a `form`, every number kept.  Raises: FormatError, QuantizationError naming what is not."""
    if isinstance(weight, form):
        return weight
    if form is AwareWeight:
        return _beside_inputs(_to_groups(weight), input_scale)
    return MOVES[type(weight), form](weight)


def _to_groups(weight: Weight) -> GroupWeight:
    found = weight if isinstance(weight, GroupWeight) else MOVES[type(weight), GroupWeight](weight)
    assert isinstance(found, GroupWeight)
    return found


def _beside_inputs(weight: GroupWeight, input_scale: Tensor | None) -> AwareWeight:
    if input_scale is None:
        raise FormatError("no calibrated activation scale: the target keeps one beside every weight")
    k = weight.bytes_NJ.shape[1] * 2
    return AwareWeight(
        weight,
        pre_scale_K=torch.ones(k, dtype=torch.bfloat16),
        scale_2=weight.scale_NG.amax() / SCALE_2,
        input_scale=input_scale.to(torch.float32).reshape(()),
    )


def _unscaled(weight: AwareWeight) -> GroupWeight:
    bad = (weight.pre_scale_K.float() != 1).nonzero()
    if len(bad):
        k = int(bad[0])
        raise FormatError(
            f"pre_quant_scale of input {k} is {weight.pre_scale_K[k].item()!r}, expected 1; fold it into the layer "
            "before first"
        )
    return weight.group


def _coarser(weight: FineWeight) -> GroupWeight:
    n, g = weight.scale_NG.shape
    four = weight.scale_NG.view(n, groups.count(g * FINE_GROUP), COARSER)
    bad = (four != four[..., :1]).nonzero()
    if len(bad):
        row, group, place = bad[0].tolist()
        raise FormatError(
            f"row {row}: the scales of inputs {group * groups.GROUP}..{(group + 1) * groups.GROUP - 1} are "
            f"{four[row, group, 0].item()!r} and {four[row, group, place].item()!r}, not one of 128; making them one "
            "rounds the codes again: use w4afp8 quantize"
        )
    return GroupWeight.packed(weight.bytes_NJ, four[..., 0].contiguous())


def _finer(weight: GroupWeight) -> FineWeight:
    return FineWeight(weight.bytes_NJ, weight.scale_NG.repeat_interleave(COARSER, -1))


def _plain(weight: Weight) -> PlainWeight:
    real_NK = weight.dequantize()
    plain = PlainWeight(real_NK.to(torch.bfloat16))
    bad = ((plain.dequantize() != real_NK) | ~real_NK.isfinite()).nonzero()
    if len(bad):
        where = bad[0].tolist()
        raise FormatError(f"weight {where} is {real_NK[tuple(where)].item()!r}, which bfloat16 does not hold")
    return plain


MOVES: dict[tuple[type[Weight], type[Weight]], Callable[..., Weight]] = {
    (AwareWeight, GroupWeight): _unscaled,
    (AwareWeight, FineWeight): lambda weight: _finer(_unscaled(weight)),
    (FineWeight, GroupWeight): _coarser,
    (GroupWeight, FineWeight): _finer,
    (MicroWeight, PlainWeight): _plain,
    (BlockWeight, PlainWeight): _plain,
    (MicroWeight, BlockWeight): lambda weight: BlockWeight(*fold.fold(weight.codes_NK, weight.exponent_NG)),
}
