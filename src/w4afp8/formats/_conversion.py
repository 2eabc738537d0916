"""From one weight format to another with the same numbers, or a refusal that says why.

The matrix of middle forms below is the whole rule; docs/format-matrix.md is printed from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8 import formats
from w4afp8.errors import FormatError
from w4afp8.formats._spec import (
    AwareWeight,
    BlockWeight,
    GroupWeight,
    MicroWeight,
    PlainWeight,
    Weight,
    WeightFormat,
)

ROUNDS = "the target cannot hold these numbers; this is quantizing, not converting: use w4afp8 quantize"
BLOCKS = "one scale per row and group does not become one per 128 x 128 block without rounding the codes again"
PLAIN = "a product of code and scale has more digits than bfloat16 holds, so every weight would be rounded"

# (from, to) -> why not.  Forms that are equal, and those in EXACT, convert.
REFUSED: dict[tuple[type, type], str] = {
    (PlainWeight, BlockWeight): ROUNDS,
    (PlainWeight, GroupWeight): ROUNDS,
    (PlainWeight, AwareWeight): ROUNDS,
    (PlainWeight, MicroWeight): ROUNDS,
    (BlockWeight, GroupWeight): ROUNDS,
    (BlockWeight, AwareWeight): ROUNDS,
    (BlockWeight, MicroWeight): ROUNDS,
    (BlockWeight, PlainWeight): PLAIN,
    (GroupWeight, PlainWeight): PLAIN,
    (GroupWeight, BlockWeight): BLOCKS,
    (GroupWeight, MicroWeight): "the codes 5 and 7 are not on the e2m1 grid, and its scales are powers of two",
    (GroupWeight, AwareWeight): "the target wants a calibrated input_scale beside every weight; the source has none",
    (AwareWeight, PlainWeight): PLAIN,
    (AwareWeight, BlockWeight): BLOCKS,
    (AwareWeight, MicroWeight): "the codes 5 and 7 are not on the e2m1 grid, and its scales are powers of two",
    (MicroWeight, GroupWeight): "the e2m1 grid is not uniform: twice its values reach 12, and int4 ends at 7",
    (MicroWeight, AwareWeight): "the e2m1 grid is not uniform: twice its values reach 12, and int4 ends at 7",
    (MicroWeight, BlockWeight): "scales of 32 inputs fold into 128 x 128 blocks only where exponents spread by 14 or "
    "less, and this program has no fold",
}
EXACT: dict[tuple[type, type], str] = {
    (AwareWeight, GroupWeight): "every pre_quant_scale is 1",
    (MicroWeight, PlainWeight): "no scale byte is above 252",
}
# What a target adds to the conditions of every source that is not of the target's own format.
NARROW = {"compressed_tensors_w4a8": "every group scale is a bfloat16"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a conversion keeps every number: `refusal` says why not, `conditions` what the values must fulfil."""

    refusal: str | None
    conditions: tuple[str, ...] = ()


def judge(source: str, target: str) -> Verdict:
    """The verdict on an ordered pair of weight formats."""
    forms = formats.get(source).form, formats.get(target).form
    if forms in REFUSED:
        return Verdict(REFUSED[forms])
    narrow = NARROW.get(target) if source != target else None
    return Verdict(None, tuple(filter(None, (EXACT.get(forms), narrow))))


def translate(weight: Weight, source: WeightFormat, target: WeightFormat) -> dict[str, Tensor]:
    """The target's tensors for a weight of the source, proven by reading them back.

    Raises: FormatError with the matrix's reason, or naming the first number that the target does not hold;
    QuantizationError where packing finds it.
    """
    refusal = judge(source.name, target.name).refusal
    if refusal:
        raise FormatError(f"{source.name} to {target.name}: {refusal}")
    moved = _move(weight, target.form)
    parts = target.pack(moved)
    difference = first_difference(moved, target.unpack(parts))
    if difference:
        raise FormatError(f"{source.name} to {target.name}: read back, {difference}")
    return parts


def _move(weight: Weight, form: type[Weight]) -> Weight:
    if isinstance(weight, form):
        return weight
    if isinstance(weight, AwareWeight):
        bad = (weight.pre_scale_K.float() != 1).nonzero()
        if len(bad):
            k = int(bad[0])
            raise FormatError(
                f"pre_quant_scale of input {k} is {weight.pre_scale_K[k].item()!r}, expected 1; fold it into the layer "
                "before first"
            )
        return weight.group
    real_NK = weight.dequantize()
    plain = PlainWeight(real_NK.to(torch.bfloat16))
    bad = ((plain.dequantize() != real_NK) | ~real_NK.isfinite()).nonzero()
    if len(bad):
        where = bad[0].tolist()
        raise FormatError(f"weight {where} is {real_NK[tuple(where)].item()!r}, which bfloat16 does not hold")
    return plain


def first_difference(one: Weight, other: Weight) -> str | None:
    """Where two weights of one form differ, bit for bit, or None."""
    for name, mine in _tensors(one).items():
        theirs = _tensors(other)[name]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return f"{name} is {theirs.dtype} {list(theirs.shape)}, was {mine.dtype} {list(mine.shape)}"
        flat = mine.contiguous().reshape(-1).view(torch.uint8), theirs.contiguous().reshape(-1).view(torch.uint8)
        if not torch.equal(*flat):
            return f"{name} differs at byte {int((flat[0] != flat[1]).nonzero()[0])}"
    return None


def _tensors(weight: Weight) -> dict[str, Tensor]:
    if isinstance(weight, AwareWeight):
        own = {"pre_scale_K": weight.pre_scale_K, "scale_2": weight.scale_2, "input_scale": weight.input_scale}
        return _tensors(weight.group) | own
    if isinstance(weight, GroupWeight):
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
        "A number points to the reason or the condition below. Every conversion reads its result back and compares it.",
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
