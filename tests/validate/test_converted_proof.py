"""Converted directories of every writable format: proven beside their source, or led back to its proof."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conversions import (
    CT,
    GPT_OSS,
    MODELOPT,
    SGLANG,
    V4,
    Ours,
    Published,
    blamed,
    convert,
    prove,
    untested,
)

from w4afp8 import formats
from w4afp8.validate import gate, validate
from w4afp8.validate.alike import TENSORS
from w4afp8.validate.converted import needs_source
from w4afp8.validate.gate import State

# (family's config, the source's format, the target's); {}: the toy DeepSeek-V3
FROM_PUBLISHERS = [
    (V4, "deepseek_mxfp4", "compressed_tensors_mxfp4"),
    (V4, "deepseek_mxfp4", "deepseek_ue8m0"),
    (V4, "deepseek_mxfp4", "bf16"),
    (V4, "deepseek_ue8m0", "bf16"),
    (V4, "deepseek_ue8m0", "deepseek_fp8"),
    ({}, "compressed_tensors_mxfp4", "deepseek_mxfp4"),
    (GPT_OSS, "gptoss_mxfp4", "compressed_tensors_mxfp4"),
    (GPT_OSS, "gptoss_mxfp4", "bf16"),
    ({}, "compressed_tensors_int4", CT),
    ({}, "deepseek_mxfp4", "deepseek_fp8"),
    ({}, MODELOPT, SGLANG),
    ({}, MODELOPT, CT),
]
FROM_OURS = [(SGLANG, CT), (SGLANG, MODELOPT), (CT, SGLANG), (CT, MODELOPT), ("deepseek_mxfp4", "deepseek_fp8")]


def test_every_writable_format_is_reached() -> None:
    written = {name for name in formats.checkpoints() if formats.checkpoint(name).written}
    reached = {target for *_, target in FROM_PUBLISHERS} | {target for _, target in FROM_OURS}
    assert reached | {"gptoss_mxfp4"} == written  # test_a_proof_travels_through_two_arrangements


@pytest.mark.parametrize(("config", "style", "target"), FROM_PUBLISHERS)
def test_beside_a_publishers_source(
    published: Published, tmp_path: Path, config: dict[str, Any], style: str, target: str
) -> None:
    source = published(config, style)
    out = convert(source, target, tmp_path / "out")
    report = prove(out, source)
    assert report.proven, (blamed(report), untested(report))
    assert report.format == target and report.check("numbers").examined > 0
    assert gate.state(out, deep=True).state is State.PROVEN
    assert f"every number is that of {source.name}" in str(gate.state(out))
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("style", "target"), FROM_OURS)
def test_what_was_proven_needs_no_source_where_the_bytes_lead_back(
    ours: Ours, tmp_path: Path, style: str, target: str
) -> None:
    source = ours(style)
    out = convert(source, target, tmp_path / "out")
    assert validate(out, source).proven
    away = source.rename(tmp_path / "away")
    report = prove(out)
    if target == "deepseek_fp8":  # FP8 folded from e2m1: more than one e2m1 checkpoint becomes it
        assert needs_source(out) and not report.proven and report.passed
        assert "in deepseek_mxfp4 do not follow from it; run `w4afp8 validate DIR --against" in str(gate.state(out))
        assert prove(out, away).proven
        return
    assert not needs_source(out)
    assert report.proven, (blamed(report), untested(report))
    assert f"led back to {style}, every tensor has the bytes with which" in str(gate.state(out))


def test_a_proof_travels_through_two_arrangements(published: Published, tmp_path: Path) -> None:
    """Stacked to apart beside the source; apart to stacked with the proof alone, part of a stack by part."""
    apart = convert(published(GPT_OSS, "gptoss_mxfp4"), "compressed_tensors_mxfp4", tmp_path / "apart")
    assert prove(apart, published(GPT_OSS, "gptoss_mxfp4")).proven
    stacked = convert(apart, "gptoss_mxfp4", tmp_path / "stacked")
    shutil.rmtree(apart)
    report = prove(stacked)
    assert report.proven, (blamed(report), untested(report))
    assert report.claim.startswith("led back to compressed_tensors_mxfp4") and report.check("numbers").examined == 3 * 6


def test_every_middle_form_can_be_compared() -> None:
    assert {formats.get(name).form for name in formats.names()} == set(TENSORS)
