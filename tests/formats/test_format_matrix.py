"""Every ordered pair of formats: the same numbers, proven by a round trip, or a refusal that says why.

`python tests/formats/test_format_matrix.py` prints docs/format-matrix.md anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from w4afp8 import formats
from w4afp8.errors import FormatError, QuantizationError
from w4afp8.formats import _conversion as conversion
from w4afp8.formats._conversion import judge, translate
from w4afp8.formats._move import move
from w4afp8.formats._spec import AwareWeight, BlockWeight, FineWeight, GroupWeight, MicroWeight, PlainWeight, Weight
from w4afp8.numerics import fp8

PAGE = Path(__file__).parents[2] / "docs" / "format-matrix.md"
CALIBRATED = torch.tensor([0.5])
PAIRS = [(a, b) for a in formats.names() for b in formats.names()]


def group() -> GroupWeight:
    scale = (torch.rand(4, 2) + 0.1).to(torch.bfloat16).float()
    return GroupWeight(torch.randint(-8, 8, (4, 256), dtype=torch.int8), scale)


def aware() -> AwareWeight:
    weight, ones = group(), torch.ones(256, dtype=torch.bfloat16)
    return AwareWeight(weight, ones, weight.scale_NG.amax() / 64, torch.tensor(0.5))


# A weight of each form that fulfils every condition of the matrix.
FITTING: dict[type[Weight], Callable[[], Weight]] = {
    GroupWeight: group,
    FineWeight: lambda: move(group(), FineWeight),
    AwareWeight: aware,
    MicroWeight: lambda: MicroWeight(
        torch.randint(0, 16, (4, 256), dtype=torch.uint8), torch.randint(120, 135, (4, 8), dtype=torch.uint8)
    ),
    BlockWeight: lambda: BlockWeight(fp8.encode(torch.randn(4, 256)), torch.tensor([[0.25, 8.0]])),
    PlainWeight: lambda: PlainWeight(torch.randn(4, 256).to(torch.bfloat16)),
}


def raw(parts: dict[str, Tensor]) -> dict[str, list[int]]:
    return {suffix: t.contiguous().reshape(-1).view(torch.uint8).tolist() for suffix, t in parts.items()}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_keeps_every_number_or_is_refused_with_the_matrixs_reason(source: str, target: str) -> None:
    a, b = formats.get(source), formats.get(target)
    parts = a.pack(FITTING[a.form]())
    verdict = judge(source, target)
    if verdict.refusal:
        with pytest.raises(FormatError) as caught:
            translate(a.unpack(parts), a, b, CALIBRATED)
        assert str(caught.value) == f"{source} to {target}: {verdict.refusal}"
        return
    there = translate(a.unpack(parts), a, b, CALIBRATED)
    assert torch.equal(b.unpack(there).dequantize(), a.unpack(parts).dequantize())
    if judge(target, source).refusal is None:
        assert raw(translate(b.unpack(there), b, a, CALIBRATED)) == raw(parts), "and back, byte for byte"


def test_the_forms_of_the_matrix_are_all_there() -> None:
    forms = {formats.get(name).form for name in formats.names()}
    for a in forms:
        for b in forms:
            listed = ((a, b) in conversion.REFUSED) + ((a, b) in conversion.EXACT) + (a is b)
            assert listed == 1, (a, b)
    assert {target for _, target in conversion.NARROW} <= set(formats.names())
    assert {form for form, _ in conversion.NARROW} <= forms


def test_what_the_condition_forbids_is_named() -> None:
    sglang, ct = formats.get("sglang_w4afp8"), formats.get("compressed_tensors_w4a8")
    odd = GroupWeight(torch.ones(2, 128, dtype=torch.int8), torch.tensor([[0.5], [0.3]]))
    with pytest.raises(QuantizationError, match=r"scale \[1, 0\] is 0\.3.*bfloat16 does not hold"):
        translate(odd, sglang, ct)
    modelopt = formats.get("modelopt_w4a8_awq")
    pre_scale = torch.ones(128)
    pre_scale[7] = 0.5
    scaled = AwareWeight(GroupWeight(odd.codes_NK, torch.ones(2, 1)), pre_scale, torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(FormatError, match=r"pre_quant_scale of input 7 is 0\.5, expected 1"):
        translate(scaled, modelopt, sglang)
    huge = MicroWeight(torch.full((1, 32), 7, dtype=torch.uint8), torch.tensor([[253]], dtype=torch.uint8))
    with pytest.raises(FormatError, match=r"weight \[0, 0\] is inf"):
        translate(huge, formats.get("deepseek_mxfp4"), formats.get("bf16"))


def test_a_format_that_loses_a_bit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sglang, ct = formats.get("sglang_w4afp8"), formats.get("compressed_tensors_w4a8")
    monkeypatch.setattr("w4afp8.formats.compressed_tensors_w4a8.groups.exactly_bf16", lambda s: s.to(torch.bfloat16))
    with pytest.raises(FormatError, match="read back, scale_NG differs at byte"):
        translate(GroupWeight(torch.ones(1, 128, dtype=torch.int8), torch.tensor([[0.3]])), sglang, ct)


def test_a_move_that_changes_a_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from w4afp8.formats import _move

    broken = {(MicroWeight, BlockWeight): lambda weight: BlockWeight(fp8.encode(weight.dequantize()), torch.ones(1, 1))}
    monkeypatch.setattr(_move, "MOVES", _move.MOVES | broken)
    weight = MicroWeight(torch.full((1, 32), 7, dtype=torch.uint8), torch.tensor([[200]], dtype=torch.uint8))
    with pytest.raises(FormatError, match="the numbers are not the source's"):
        translate(weight, formats.get("deepseek_mxfp4"), formats.get("deepseek_fp8"))


@pytest.mark.parametrize("spoil", [
    lambda weight: FineWeight(weight.bytes_NJ ^ 1, weight.scale_NG.repeat_interleave(4, -1)),
    lambda weight: FineWeight(weight.bytes_NJ, weight.scale_NG.repeat_interleave(4, -1) * 2),
])  # fmt: skip
def test_an_int4_move_that_changes_a_number_is_caught(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[GroupWeight], FineWeight]
) -> None:
    """Though int4 forms are compared by codes and scales, not multiplied out."""
    from w4afp8.formats import _move

    sglang, kimi = formats.get("sglang_w4afp8"), formats.get("compressed_tensors_int4")
    weight = GroupWeight(torch.ones(2, 256, dtype=torch.int8), torch.tensor([[0.5, 1.0], [2.0, 0.25]]))
    assert torch.equal(kimi.unpack(translate(weight, sglang, kimi)).dequantize(), weight.dequantize())
    monkeypatch.setattr(_move, "MOVES", _move.MOVES | {(GroupWeight, FineWeight): spoil})
    with pytest.raises(FormatError, match="the numbers are not the source's"):
        translate(weight, sglang, kimi)


def test_every_scale_byte_up_to_252_is_a_bfloat16_times_every_code() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(253, 2)
    weight = MicroWeight(codes, torch.arange(253, dtype=torch.uint8)[:, None])
    parts = translate(weight, formats.get("deepseek_mxfp4"), formats.get("bf16"))
    assert torch.equal(parts[".weight"].float(), weight.dequantize())


MX = ("deepseek_mxfp4", "compressed_tensors_mxfp4", "gptoss_mxfp4")
INT4S = ("sglang_w4afp8", "compressed_tensors_w4a8", "compressed_tensors_int4", "modelopt_w4a8_awq")
FP8S = ("deepseek_fp8", "deepseek_ue8m0", "compressed_tensors_fp8")
BF16_SCALES, UNFOLDED = conversion.SIXTEEN_BITS, conversion.UNSCALED
Rows = dict[tuple[str, str], str | tuple[str, ...]]
NO = "refused"


def pairs(sources: tuple[str, ...], targets: tuple[str, ...], verdict: str | tuple[str, ...]) -> Rows:
    return {(a, b): verdict for a in sources for b in targets if a != b}


# Each row of tests/golden/bit_exact.md as verdicts on our formats: NO, or the conditions.
REFERENCE: dict[str, Rows] = {
    "DSV4 experts <-> compressed-tensors mxfp4": pairs(MX[:2], MX[:2], ()),
    "DSV4 experts <-> GPT-OSS blocks": pairs((MX[0], MX[2]), (MX[0], MX[2]), ()),
    "MXFP4 -> bf16": pairs(MX, ("bf16",), ("no scale byte is above 252",)),
    "MXFP4 -> FP8 block 128": pairs(
        MX, FP8S, ("the exponents of every 128 x 128 block lie within 14 of each other",)
    ),
    "MXFP4 -> int4 (any)": pairs(MX, INT4S, NO),
    "w4afp8 <-> compressed-tensors int4": {
        ("sglang_w4afp8", "compressed_tensors_w4a8"): (BF16_SCALES,), ("compressed_tensors_w4a8", "sglang_w4afp8"): (),
    },
    "w4afp8 <-> ModelOpt W4A8_AWQ": {
        # "if pre_quant_scale is 1 or folded"; the way there also wants the activation scales that its files have.
        ("modelopt_w4a8_awq", "sglang_w4afp8"): (UNFOLDED,),
        ("sglang_w4afp8", "modelopt_w4a8_awq"): (conversion.CALIBRATED,),
    },
    "FP8 block -> bf16": pairs(
        FP8S, ("bf16",), ("every weight is a bfloat16, as where block scales are powers of two",)
    ),
    "FP8 block -> int4/MXFP4": pairs(FP8S, (*INT4S, *MX), NO),
}  # fmt: skip
LAYOUTS = ("MXFP4 -> Humming payload", "any logical -> C1, C2, C4, C5 runtime weights")  # no formats of a checkpoint


def test_the_matrix_is_the_reference_tables(golden: Path) -> None:
    table = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", (golden / "bit_exact.md").read_text(), re.M)
    rows = {name: exact for name, exact in table if name not in ("from -> to", "---")}
    assert set(rows) == {*REFERENCE, *LAYOUTS}
    for row, verdicts in REFERENCE.items():
        assert verdicts and (rows[row].strip("*") == "no") == (NO in verdicts.values()), row
        for (source, target), expected in verdicts.items():
            found = judge(source, target)
            assert (NO if found.refusal else found.conditions) == expected, (row, source, target)


def test_the_page_is_the_codes_own_matrix() -> None:
    assert PAGE.read_text() == conversion.matrix_page(), "print it anew: python tests/formats/test_format_matrix.py"


if __name__ == "__main__":
    PAGE.write_text(conversion.matrix_page())
