"""Two weights that must hold the same numbers: sound by themselves, and alike, each in its own middle form.

What two forms share is compared bit for bit: codes and scales of int4, whatever the groups; otherwise every number.
Letters: N x K a weight, G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.checkpoint.spec import raw_bytes
from w4afp8.formats._spec import (
    AwareWeight,
    BlockWeight,
    FineWeight,
    GroupWeight,
    MicroWeight,
    PlainWeight,
    Weight,
    in_fine_groups,
)
from w4afp8.numerics import e8m0
from w4afp8.numerics.bytewise import same_bytes
from w4afp8.validate.values import not_finite

AMAX_SHARE = 64.0  # ModelOpt: amax / 448 of a weight whose largest group scale is amax / 7
Tensors = dict[str, Tensor]

# form -> its tensors, in the order of the format's parts, as far as they are numbers of the weight.
TENSORS: dict[type[Weight], Callable[[Any], Tensors]] = {
    GroupWeight: lambda w: {"codes": w.bytes_NJ, "scale": w.scale_NG},
    FineWeight: lambda w: {"codes": w.bytes_NJ, "scale": w.scale_NG},
    AwareWeight: lambda w: {
        "codes": w.group.bytes_NJ, "scale": w.group.scale_NG, "weight_scale_2": w.scale_2,
        "input_scale": w.input_scale, "pre_quant_scale": w.pre_scale_K,
    },
    MicroWeight: lambda w: {"codes": w.bytes_NJ, "scale byte": w.exponent_NG},
    BlockWeight: lambda w: {"code": w.codes_NK, "scale": w.scale_RC},
    PlainWeight: lambda w: {"weight": w.real_NK},
}  # fmt: skip
NOT_POSITIVE = "a number that is not positive"
POSITIVE: Mapping[type[Weight], tuple[str, ...]] = {
    GroupWeight: ("scale",),
    FineWeight: ("scale",),
    AwareWeight: ("scale", "weight_scale_2", "input_scale", "pre_quant_scale"),
}
INT4 = (GroupWeight, FineWeight, AwareWeight)


def unsound(weight: Weight) -> str | None:
    """The first number that no weight may have: NaN, infinity, a scale that is not positive; where, and what."""
    for name, tensor in TENSORS[type(weight)](weight).items():
        if name == "scale byte":
            bad, what = tensor == e8m0.NAN, "the byte 255, NaN in E8M0"
        elif name == "codes":
            continue
        else:
            bad, what = not_finite(tensor), "a NaN or infinity"
            if name in POSITIVE.get(type(weight), ()) and not bool(bad.any()):
                bad, what = tensor <= 0, NOT_POSITIVE
            elif isinstance(weight, BlockWeight) and name == "scale" and not bool(bad.any()):
                bad, what = tensor < 0, "a negative number"
        if bool(bad.any()):
            return f"{name} {_first(bad)} is {what}"
    return None


def difference(found: Weight, source: Weight) -> tuple[str, str] | None:
    """The first number of `found` that is not `source`'s, and the one that it should be; None where there is none."""
    if isinstance(found, INT4) and isinstance(source, INT4) and type(found) is not type(source):
        return _among_int4(found, source)
    if type(found) is type(source):
        mine, theirs = TENSORS[type(found)](found), TENSORS[type(source)](source)
        return next(filter(None, (_unequal(name, mine[name], theirs[name]) for name in mine)), None)
    return _unequal("weight", found.dequantize(), source.dequantize(), by_value=True)


def _among_int4(found: Weight, source: Weight) -> tuple[str, str] | None:
    for weight in (found, source):
        if isinstance(weight, AwareWeight):
            said = _no_factor(weight) if weight is source else made_alone(weight)
            if said:
                return said
    (mine, my_scale), (theirs, their_scale) = _fine(found), _fine(source)
    return _unequal("codes", mine, theirs) or _unequal("scale", my_scale, their_scale)


def made_alone(weight: AwareWeight) -> tuple[str, str] | None:
    """What a weight that had groups alone was given, where it is not what it must be: no input factor, its own amax."""
    amax = weight.group.scale_NG.amax() / AMAX_SHARE
    return _no_factor(weight) or _unequal("weight_scale_2", weight.scale_2, amax)


def _no_factor(weight: AwareWeight) -> tuple[str, str] | None:
    return _unequal("pre_quant_scale", weight.pre_scale_K.float(), torch.ones(len(weight.pre_scale_K)))


def _fine(weight: Weight) -> tuple[Tensor, Tensor]:
    """Bytes, and a scale for every 32 inputs."""
    group = weight.group if isinstance(weight, AwareWeight) else weight
    assert isinstance(group, GroupWeight | FineWeight)
    return in_fine_groups(group)


def _unequal(name: str, found: Tensor, source: Tensor, by_value: bool = False) -> tuple[str, str] | None:
    """Bit for bit, or (`by_value`) number for number."""
    if found.shape != source.shape or (found.dtype != source.dtype and not by_value):
        return f"{name} of {found.dtype} {list(found.shape)}", f"{source.dtype} {list(source.shape)}"
    if torch.equal(found, source) if by_value else same_bytes(found, source):
        return None
    mine, theirs = (found, source) if by_value else (raw_bytes(found), raw_bytes(source))
    bad = (mine != theirs).view(*found.shape, -1).any(-1)
    if not bool(bad.any()):
        return None
    where = tuple(bad.nonzero()[0].tolist())
    return f"{name} {list(where)} is {_shown(found[where])}", _shown(source[where])


def _shown(value: Tensor) -> str:
    return f"0x{value.item():02x}" if value.dtype == torch.uint8 else repr(value.float().item())


def _first(bad: Tensor) -> list[int]:
    return list(bad.nonzero()[0].tolist())
