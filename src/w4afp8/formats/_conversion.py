"""From one weight format to another with the same numbers, or a refusal that says why.

The matrix of middle forms below is the whole rule; docs/format-matrix.md is printed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8 import formats
from w4afp8.checkpoint.spec import raw_bytes
from w4afp8.errors import FormatError
from w4afp8.formats._move import move
from w4afp8.formats._spec import (
    AwareWeight,
    BlockWeight,
    FineWeight,
    GroupWeight,
    MicroWeight,
    PlainWeight,
    Weight,
    WeightFormat,
    in_fine_groups,
)
from w4afp8.numerics.bytewise import same_bytes

ROUNDS = "the target cannot hold these numbers; this is quantizing, not converting: use w4afp8 quantize"
BLOCKS = "one scale per row and group does not become one per 128 x 128 block without rounding the codes again"
PLAIN = "a product of code and scale has more digits than bfloat16 holds, so every weight would be rounded"
E2M1 = "the codes 5 and 7 are not on the e2m1 grid, and its scales are powers of two"
INT4 = "the e2m1 grid is not uniform: twice its values reach 12, and int4 ends at 7"

# (from, to) -> why not.  Forms that are equal, and those in EXACT, convert.
REFUSED: dict[tuple[type, type], str] = {
    **{(PlainWeight, to): ROUNDS for to in (BlockWeight, GroupWeight, FineWeight, AwareWeight, MicroWeight)},
    **{(BlockWeight, to): ROUNDS for to in (GroupWeight, FineWeight, AwareWeight, MicroWeight)},
    **{(int4, PlainWeight): PLAIN for int4 in (GroupWeight, FineWeight, AwareWeight)},
    **{(int4, BlockWeight): BLOCKS for int4 in (GroupWeight, FineWeight, AwareWeight)},
    **{(int4, MicroWeight): E2M1 for int4 in (GroupWeight, FineWeight, AwareWeight)},
    **{(MicroWeight, int4): INT4 for int4 in (GroupWeight, FineWeight, AwareWeight)},
}
UNSCALED = "every pre_quant_scale is 1"
COARSE = "the four scales of every 128 inputs are equal (otherwise use w4afp8 quantize)"
CALIBRATED = "the source has calibrated activation scales"
EXACT: dict[tuple[type, type], tuple[str, ...]] = {
    (AwareWeight, GroupWeight): (UNSCALED,),
    (AwareWeight, FineWeight): (UNSCALED,),
    (GroupWeight, AwareWeight): (CALIBRATED,),
    (FineWeight, AwareWeight): (COARSE, CALIBRATED),
    (FineWeight, GroupWeight): (COARSE,),
    (GroupWeight, FineWeight): (),
    (MicroWeight, PlainWeight): ("no scale byte is above 252",),
    (MicroWeight, BlockWeight): ("the exponents of every 128 x 128 block lie within 14 of each other",),
    (BlockWeight, PlainWeight): ("every weight is a bfloat16, as where block scales are powers of two",),
}
# What a target adds for sources of a form, if they are not of the target's own format.
SIXTEEN_BITS = "every group scale is a bfloat16"
NARROW: dict[tuple[type, str], str] = {
    **{
        (form, target): SIXTEEN_BITS
        for form in (GroupWeight, FineWeight, AwareWeight)
        for target in ("compressed_tensors_w4a8", "compressed_tensors_int4")
    },
    (BlockWeight, "deepseek_ue8m0"): "every block scale is a power of two",
}


# Forms whose conditions are not on scales alone.
ON_CODES = (PlainWeight, BlockWeight, AwareWeight)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a conversion keeps every number: `refusal` says why not, `conditions` what the values must fulfil."""

    refusal: str | None
    conditions: tuple[str, ...] = ()


def judge(source: str, target: str) -> Verdict:
    """The verdict on an ordered pair of weight formats."""
    form, other = formats.get(source).form, formats.get(target).form
    if (form, other) in REFUSED:
        return Verdict(REFUSED[form, other])
    narrow = NARROW.get((form, target)) if source != target else None
    return Verdict(None, (*EXACT.get((form, other), ()), *filter(None, [narrow])))


def translate(
    weight: Weight, source: WeightFormat, target: WeightFormat, input_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """The target's tensors for a weight of the source, proven by reading them back.

    `input_scale` is the static FP8 scale of the weight's inputs, for targets that keep it beside the weight.
    Raises: FormatError with the matrix's reason, or naming the first number that the target does not hold;
    QuantizationError where packing finds it.
    """
    refusal = judge(source.name, target.name).refusal
    if refusal:
        raise FormatError(f"{source.name} to {target.name}: {refusal}")
    moved = move(weight, target.form, input_scale)
    if not _same_numbers(moved, weight):
        raise FormatError(
            f"{source.name} to {target.name}: the numbers are not the source's; report this with the file"
        )
    parts = target.pack(moved)
    difference = first_difference(moved, target.unpack(parts))
    if difference:
        raise FormatError(f"{source.name} to {target.name}: read back, {difference}")
    return parts


def check_scales(parts: Mapping[str, Tensor], source: WeightFormat, target: WeightFormat) -> None:
    """Raise what `translate` would, of parts whose codes (the first part) may be any: the conditions are on scales.

    But for the targets in ON_CODES, whose numbers are products of both.
    """
    target.pack(move(source.unpack(parts), target.form))


def _same_numbers(one: Weight, other: Weight) -> bool:
    """Whether two weights are equal; the same codes under the same scales need not be multiplied out to say so."""
    if one is other:
        return True
    mine, theirs = _int4(one), _int4(other)
    if mine and theirs and all(map(torch.equal, mine, theirs)):
        return True
    return torch.equal(one.dequantize(), other.dequantize())


def _int4(weight: Weight) -> tuple[Tensor, Tensor] | None:
    """The bytes of codes in groups of 32 and their scales, of forms that are no more than these."""
    if isinstance(weight, AwareWeight):
        return _int4(weight.group) if bool((weight.pre_scale_K == 1).all()) else None
    return in_fine_groups(weight) if isinstance(weight, GroupWeight | FineWeight) else None


def first_difference(one: Weight, other: Weight) -> str | None:
    """Where two weights of one form differ, bit for bit, or None."""
    for name, mine in _tensors(one).items():
        theirs = _tensors(other)[name]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return f"{name} is {theirs.dtype} {list(theirs.shape)}, was {mine.dtype} {list(mine.shape)}"
        if not same_bytes(mine, theirs):
            one_raw, other_raw = map(raw_bytes, (mine, theirs))
            return f"{name} differs at byte {int((one_raw != other_raw).nonzero()[0])}"
    return None


def _tensors(weight: Weight) -> dict[str, Tensor]:
    if isinstance(weight, AwareWeight):
        own = {"pre_scale_K": weight.pre_scale_K, "scale_2": weight.scale_2, "input_scale": weight.input_scale}
        return _tensors(weight.group) | own
    if isinstance(weight, GroupWeight):
        return {"bytes_NJ": weight.bytes_NJ, "scale_NG": weight.scale_NG}
    if isinstance(weight, FineWeight):
        return {"bytes_NJ": weight.bytes_NJ, "scale_NG": weight.scale_NG}
    if isinstance(weight, MicroWeight):
        return {"bytes_NJ": weight.bytes_NJ, "exponent_NG": weight.exponent_NG}
    if isinstance(weight, BlockWeight):
        return {"codes_NK": weight.codes_NK, "scale_RC": weight.scale_RC}
    assert isinstance(weight, PlainWeight)
    return {"real_NK": weight.real_NK}


def matrix_page() -> str:
    """docs/format-matrix.md: what becomes of every ordered pair."""
    names = formats.names()
    lines = [
        "# What converts into what",
        "",
        "Printed from `formats/_conversion.py` by `python tests/formats/test_format_matrix.py`; a test compares them.",
        "A number points to the reason or the condition below. Every conversion reads its result back and compares it;",
        "`w4afp8 validate` compares it with the source again (docs/publishing.md).",
        "",
        "| from \\ to | " + " | ".join(f"`{name}`" for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    notes: list[str] = []
    for source in names:
        cells = []
        for target in names:
            verdict = judge(source, target)
            words = [verdict.refusal] if verdict.refusal else [f"Exact where {c}." for c in verdict.conditions]
            notes += [word for word in words if word not in notes]
            marks = ", ".join(str(notes.index(word) + 1) for word in words)
            cells.append(f"no ({marks})" if verdict.refusal else f"exact ({marks})" if words else "exact")
        lines.append(f"| `{source}` | " + " | ".join(cells) + " |")
    sentences = (note[0].upper() + note[1:].rstrip(".") for note in notes)
    return "\n".join([*lines, "", *(f"{i}. {note}." for i, note in enumerate(sentences, 1)), ""])
