"""Grids: what codes and scales may be, and that search on e2m1 only ever lowers the error that it minimizes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rounding import problem
from torch import Tensor

from w4afp8.errors import RecipeError
from w4afp8.formats._spec import MicroWeight
from w4afp8.numerics import distance, e8m0, fp4, groups
from w4afp8.quantize import _rounding, _scales
from w4afp8.quantize._grid import INT4, MXFP4, OF_SCHEME
from w4afp8.recipes._load import build
from w4afp8.recipes._recipe import FORMAT_OF, Scheme

SEEDS = st.integers(0, 2**31)
SEVERAL = 12  # of whole matrices drawn anew: one seed is as good as another


def error(weight: Tensor, gram: Tensor, codes: Tensor, scale: Tensor) -> float:
    return distance.gram_error((groups.decode(codes, scale, MXFP4.group) - weight).double(), gram.double())


def test_a_snapped_code_is_the_nearest_e2m1_value_twice() -> None:
    values = torch.cat((torch.linspace(-16, 16, 4001), torch.tensor([0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, -10.0, -7.0])))
    expected = 2 * fp4.decode(fp4.encode(values / 2))
    assert torch.equal(MXFP4.snap_(values.clone()), expected)
    assert torch.equal(INT4.snap_(values.clone()), values.round().clamp(-8, 7))


def test_plain_exponents_are_compressed_tensors_own(golden: Path) -> None:
    table = json.loads((golden / "numeric_tables.json").read_text())["e8m0_byte_for_amax"]
    amax = torch.tensor([float(v) for v in table["amax"]])
    theirs = torch.tensor([float(v) for v in table["compressed_tensors_even"]])
    alive = (amax > 0) & (theirs >= 0)  # below 2^-125 it leaves the byte's range; ours stays at 0
    ours = (MXFP4.plain(amax) * 2).log2() + 127
    assert torch.equal(ours[alive], theirs[alive])
    assert (MXFP4.plain(amax)[amax == 0] == 0.5).all(), "a group of zeros has the scale 1"


@pytest.mark.parametrize("amax", [0.0, 1e-45, 1.2e-38, 2.0**-126, 1.0, 5.9, 3e38])
def test_every_candidate_can_be_stored(amax: float) -> None:
    for scale in (MXFP4.plain(torch.tensor([[amax]])), *MXFP4.candidates(torch.tensor([[amax]]))):
        e8m0.encode(scale * 2)
    for scale in (INT4.plain(torch.tensor([amax])), *INT4.candidates(torch.tensor([amax]))):
        assert (scale > 0).all()


@settings(max_examples=SEVERAL)
@given(SEEDS)
def test_searched_exponents_are_never_worse_than_any_single_rule(seed: int) -> None:
    weight, gram = problem(seed)
    gram = torch.block_diag(*(gram[b : b + 32, b : b + 32] for b in range(0, 256, 32)))
    scale = _scales.search(weight, gram, MXFP4)
    best = error(weight, gram, MXFP4.round(weight, scale), scale)
    amax = groups.amax(weight, 32)
    for other in (MXFP4.plain(amax), *MXFP4.candidates(amax), torch.exp2(torch.ceil(torch.log2(amax / 6))) / 2):
        found = error(weight, gram, MXFP4.round(weight, other), other)
        assert best <= found * (1 + 1e-5)
    assert math.isfinite(best)


@settings(max_examples=SEVERAL)
@given(SEEDS)
def test_feedback_and_descent_lower_the_error_on_e2m1(seed: int) -> None:
    weight, gram = problem(seed)
    plain = MXFP4.round_to_nearest(weight)
    before = error(weight, gram, plain.codes_NK, plain.scale_NG)
    codes, scale = _rounding.feedback(weight, gram, MXFP4)
    after = error(weight, gram, codes, scale)
    assert after < before
    codes, scale = _rounding.refine(weight, gram, codes, scale, 1, 2, MXFP4)
    assert error(weight, gram, codes, scale) <= after * (1 + 1e-5)
    stored = MXFP4.weight(MXFP4.round_to_nearest(weight))
    assert isinstance(stored, MicroWeight)
    assert set(codes.unique().tolist()) <= {s * c for c in (0, 1, 2, 3, 4, 6, 8, 12) for s in (1, -1)}


@given(SEEDS)
def test_what_is_rounded_is_what_is_stored(seed: int) -> None:
    weight, _ = problem(seed)
    weight[0, :32] = 0
    rounded = MXFP4.round_to_nearest(weight)
    stored = MXFP4.weight(rounded)
    assert isinstance(stored, MicroWeight)
    assert torch.equal(stored.dequantize(), rounded.dequantize())
    again = stored.doubled()
    assert torch.equal(again.codes_NK, rounded.codes_NK) and torch.equal(again.scale_NG, rounded.scale_NG)
    assert INT4.weight(rounded) is rounded


def test_every_scheme_has_a_grid_and_a_format() -> None:
    assert set(OF_SCHEME) == {str(s) for s in Scheme} == {str(s) for s in FORMAT_OF}
    assert build({"scheme": "MXFP4"}, "x").output.format == "compressed_tensors_mxfp4"
    assert build({"scheme": "MXFP4", "output": {"shard_gb": 1.0}}, "x").output.format == "compressed_tensors_mxfp4"
    chosen = build({"scheme": "MXFP4", "output": {"format": "deepseek_mxfp4"}}, "x")
    assert chosen.output.format == "deepseek_mxfp4" and chosen.scheme is Scheme.MXFP4
    assert build({}, "x").output.format == "sglang_w4afp8"
    with pytest.raises(RecipeError, match="scheme"):
        build({"scheme": "MXFP8"}, "x")
