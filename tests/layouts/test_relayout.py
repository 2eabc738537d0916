"""Whole checkpoints into every layout and back, byte for byte; what cannot be is refused before a byte is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from relayouts import Make, back, files, into, tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8 import conversion, layouts
from w4afp8.errors import (
    CheckpointError,
    FormatError,
    QuantizationError,
    RecipeError,
    ResumeError,
)
from w4afp8.layouts._record import canonical_checksum
from w4afp8.relayout.back import prepare_back
from w4afp8.synthetic import write_checkpoint
from w4afp8.validate import validate
from w4afp8.validate.seal import digest


@pytest.mark.parametrize("tp, ep", [(1, 1), (3, 2)])
def test_int4_goes_into_every_layout_and_back_byte_for_byte(int4: Make, tmp_path: Path, tp: int, ep: int) -> None:
    source = int4(moe_intermediate_size=384, num_hidden_layers=2)
    for name in layouts.names():
        out, again = tmp_path / name, tmp_path / f"{name}-back"
        holdings = layouts.get(name).int4
        if isinstance(holdings, str):
            with pytest.raises(RecipeError, match=f"{name} does not hold sglang_w4afp8"):
                into(source, name, out)
            continue
        tolerance = 0.07 if all(held.scales.searched for held in holdings) else 0
        try:
            into(source, name, out, tp=tp, ep=ep, tolerance=tolerance)
        except FormatError as error:
            assert all(len(shape) == 1 for held in holdings for shape in held.scales.shapes(2, 3))
            assert "holds one scale per row" in str(error) and not out.exists()
            continue
        report = validate(out)
        assert report.passed and not report.proven, [str(p) for p in report.problems]
        back(out, again)
        assert files(again) == files(source), name


@pytest.mark.parametrize("ranks", [{}, {"tp": 3}, {"tp": 2, "ep": 2}])
def test_mxfp4_with_biases_goes_into_every_layout_and_back(
    gpt_oss: Path, tmp_path: Path, ranks: dict[str, int]
) -> None:
    for name in layouts.names():
        layout = layouts.get(name)
        out, again = tmp_path / name, tmp_path / f"{name}-back"
        if isinstance(layout.mxfp4, str):
            with pytest.raises(RecipeError, match=f"{name} does not hold gptoss_mxfp4"):
                into(gpt_oss, name, out)
            continue
        record = into(gpt_oss, name, out, **ranks)
        assert record.notes, "96 and 160 are no multiples of 128"
        report = validate(out)
        assert report.passed, [str(p) for p in report.problems]
        back(out, again)
        assert files(again) == files(gpt_oss), name


def test_biases_follow_the_rows(gpt_oss: Path, tmp_path: Path) -> None:
    into(gpt_oss, "flashinfer-sm90-v2", tmp_path / "out", tp=2)
    source = tensors(gpt_oss)
    stem = "model.layers.1.mlp.experts"
    gate_up, down = source[f"{stem}.gate_up_proj_bias"], source[f"{stem}.down_proj_bias"]
    for rank, share in enumerate((slice(0, 96), slice(96, 160))):
        held = tensors(tmp_path / "out" / f"rank-{rank}-of-2")
        w13 = held[f"{stem}.w13_bias"]
        assert w13.shape == (4, 256)
        length = share.stop - share.start
        assert torch.equal(w13[:, :length], gate_up[:, 1::2][:, share]), "up stands first"
        assert torch.equal(w13[:, 128 : 128 + length], gate_up[:, 0::2][:, share])
        assert not w13[:, length:128].any() and not w13[:, 128 + length :].any()
        w2 = held[f"{stem}.w2_bias"]
        assert w2.shape == (4, 128) and torch.equal(w2[:, :96], down if rank == 0 else torch.zeros_like(down))


@pytest.mark.parametrize("form", ["deepseek_mxfp4", "compressed_tensors_mxfp4"])
def test_experts_with_names_of_their_own_come_back_too(toy: Make, tmp_path: Path, form: str) -> None:
    source = toy(dtype=form, num_hidden_layers=2)
    into(source, "marlin", tmp_path / "out", tp=2, ep=2)
    assert validate(tmp_path / "out").passed
    back(tmp_path / "out", tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def moe(weights: dict[str, Tensor], layout: str, hidden: int, begin: int = 0) -> Tensor:
    """The op on tokens that visit every expert."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, hidden, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(6)]).int()
    more = {"w13_input_scale": weights["w13_input_scale"], "w2_input_scale": weights["w2_input_scale"]}
    stacks = (weights[n] for n in ("w13", "w13_scale", "w2", "w2_scale"))
    return torch.ops.w4afp8.fused_moe(x, ids, torch.full((6, 2), 0.5), *stacks, **more, layout=layout,
                                      expert_begin=begin).float()  # fmt: skip


def test_the_op_takes_what_stands_in_the_files(int4: Make, tmp_path: Path) -> None:
    """Tensor by tensor, without a step between; ranks' results add up to the whole one's."""
    source = int4(moe_intermediate_size=256, num_hidden_layers=2)
    held, stem = tensors(source), "model.layers.1.mlp.experts"

    def stacked(projection: str, suffix: str) -> Tensor:
        return torch.stack([held[f"{stem}.{e}.{projection}_proj.{suffix}"] for e in range(4)])

    canonical = {
        "w13": torch.cat([stacked("gate", "weight"), stacked("up", "weight")], 1), "w2": stacked("down", "weight"),
        "w13_scale": torch.cat([stacked("gate", "weight_scale_inv"), stacked("up", "weight_scale_inv")], 1),
        "w2_scale": stacked("down", "weight_scale_inv"),
        "w13_input_scale": torch.stack([held[f"{stem}.{e}.{w}.input_scale"] for e in range(4) for w in ("w1", "w3")])
        .amax().reshape(1),
        "w2_input_scale": torch.stack([held[f"{stem}.{e}.w2.input_scale"] for e in range(4)]).amax().reshape(1),
    }  # fmt: skip
    expected = moe(canonical, "canonical", 128)

    def rank(folder: Path, begin: int = 0) -> Tensor:
        found = {n.removeprefix(f"{stem}."): t for n, t in tensors(folder).items() if n.startswith(f"{stem}.w")}
        return moe(found, "sm90", 128, begin)

    into(source, "sm90", tmp_path / "whole")
    assert torch.equal(rank(tmp_path / "whole"), expected)
    into(source, "sm90", tmp_path / "tp", tp=2)
    summed = sum(rank(tmp_path / "tp" / f"rank-{r}-of-2") for r in range(2))
    assert torch.allclose(summed, expected, atol=0.02 * float(expected.abs().max()))
    into(source, "sm90", tmp_path / "ep", ep=2)
    summed = sum(rank(tmp_path / "ep" / f"rank-{r}-of-2", begin=2 * r) for r in range(2))
    assert torch.allclose(summed, expected, atol=0.02 * float(expected.abs().max()))


def test_what_the_directory_is_stands_in_its_files(int4: Make, tmp_path: Path) -> None:
    source, out = int4(), tmp_path / "out"
    record = into(source, "sglang-cutlass", out, ep=2)
    shards = {path.name: digest(path) for path in source.glob("*.safetensors")}
    assert record.canonical == canonical_checksum(shards)
    with safe_open(next((out / "rank-0-of-2").glob("*.safetensors")), "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt", "w4afp8.layout": "sglang-cutlass", "w4afp8.layout_version": "1", "w4afp8.split": "tp 1, ep 2",
        "w4afp8.canonical_sha256": record.canonical,
    }  # fmt: skip
    block = json.loads((out / "rank-1-of-2" / "config.json").read_text())["quantization_config"]
    assert block["quant_method"] == "w4afp8-layout" and block["experts"] == [2, 4] and block["rank"] == 1
    assert block["sizes"]["experts"] == 4 and block["sizes"]["experts_per_rank"] == 2
    carried = tensors(out)
    before = tensors(source)
    assert carried.keys() == {n for n in before if ".experts." not in n}
    assert all(torch.equal(t.view(torch.uint8), before[n].view(torch.uint8)) for n, t in carried.items() if t.ndim)


def test_static_scales_are_the_largest_of_a_ranks_experts(int4: Make, tmp_path: Path) -> None:
    source = int4(num_hidden_layers=2, num_nextn_predict_layers=0)
    path = source / "act_scales.safetensors"
    values = {n: torch.tensor([0.001 * (i + 1)]) for i, n in enumerate(sorted(load_file(path)))}
    save_file(values, path, {"format": "pt"})
    stem = "model.layers.1.mlp.experts"
    for name, rounded in (("sm90", False), ("sglang-cutlass", True)):
        into(source, name, tmp_path / name, ep=2)
        for rank, experts in enumerate(((0, 1), (2, 3))):
            held = tensors(tmp_path / name / f"rank-{rank}-of-2")
            for stack, words in (("w13", ("w1", "w3")), ("w2", ("w2",))):
                every = torch.cat([values[f"{stem}.{e}.{w}.input_scale"] for e in experts for w in words])
                every = every.bfloat16().float() if rounded else every
                assert torch.equal(held[f"{stem}.{stack}_input_scale"], every.amax().reshape(1))


def test_everything_is_refused_before_a_byte_is_written(int4: Make, toy: Make, gpt_oss: Path, tmp_path: Path) -> None:
    source, out = int4(), tmp_path / "out"

    def refused(kind: type[Exception], says: str, *words: Any, **ranks: Any) -> None:
        with pytest.raises(kind, match=says):
            into(*words, out, **ranks)
        assert not out.exists()

    refused(RecipeError, "stands in deepseek_fp8|in MXFP4; here", toy("plain"), "sm90")
    refused(RecipeError, "--ep 3: 4 experts do not divide", source, "sm90", ep=3)
    refused(RecipeError, "at most --tp 1", source, "sm90", tp=2)
    refused(RecipeError, "unknown layout 'sm91'", source, "sm91")
    refused(RecipeError, "--tolerance: marlin holds scales exactly", source, "marlin", tolerance=0.1)
    refused(RecipeError, "e2m1 codes have no bytes here", gpt_oss, "sm90")
    scales = load_file(source / "act_scales.safetensors")
    gone = next(iter(scales))
    for path in source.glob("model-*.safetensors"):
        held = load_file(path)
        name = "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv"
        if name in held:
            held[name][3, 0] = 0.3
            save_file(held, path, {"format": "pt"})
            refused(FormatError, r"experts\.0 w13: scale \[131, 0\] is 0\.3.*BF16 does not hold", source, "marlin")
            assert into(source, "sm90", tmp_path / "wide").holding == 1, "sm90 also takes float32"
            assert validate(tmp_path / "wide").passed
            held[name][3, 0] = float("nan")
            save_file(held, path, {"format": "pt"})
            refused(QuantizationError, "element 3 is NaN", source, "marlin")
    scales.pop(gone)
    save_file(scales, source / "act_scales.safetensors")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"].pop(gone)
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(CheckpointError, f"{gone} is missing", source, "sm90")


@pytest.mark.parametrize("tp", [1, 2])
def test_the_refusal_of_searched_scales_says_the_tolerance_that_is_enough(int4: Make, tmp_path: Path, tp: int) -> None:
    source, out = int4(moe_intermediate_size=384, num_hidden_layers=2), tmp_path / "out"
    with pytest.raises(FormatError, match="run it again with --tolerance") as refused:
        into(source, "vllm-cutlass", out, tp=tp)
    said = re.search(r"--tolerance (0\.\d+)", str(refused.value))
    assert said
    enough = float(said[1])
    with pytest.raises(FormatError, match=f"--tolerance {enough:g},"):
        into(source, "vllm-cutlass", out, tp=tp, tolerance=enough - 1e-4)
    assert not out.exists()
    into(source, "vllm-cutlass", out, tp=tp, tolerance=enough)
    back(out, tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def test_a_layout_is_no_source_of_another(int4: Make, tmp_path: Path) -> None:
    source, out = int4(num_hidden_layers=2), tmp_path / "out"
    into(source, "sm90", out)
    with pytest.raises(RecipeError, match="has the layout sm90; go back first"):
        into(out, "marlin", tmp_path / "none")
    with pytest.raises(CheckpointError, match="has the runtime layout sm90, whose stacks are no checkpoint's tensors"):
        conversion.prepare(out, "compressed_tensors_w4a8", tmp_path / "none", 1.0)
    with pytest.raises(RecipeError, match="no layout to go back from"):
        prepare_back(source)
    with pytest.raises(ResumeError, match="holds a finished checkpoint"):
        into(source, "sm90", out)
    with pytest.raises(CheckpointError, match="is the source itself"):
        into(source, "sm90", source)
    before = files(source)
    for inside in (source, out):
        with pytest.raises(CheckpointError, match="lies in the source"):
            (into(source, "sm90", source / "sm90") if inside == source else back(out, out / "again"))
    with pytest.raises(CheckpointError, match="lies in the source"):
        conversion.run(conversion.prepare(source, "compressed_tensors_w4a8", source / "ct", 1.0))
    assert files(source) == before and not (out / "again").exists()


def test_half_a_character_in_the_config_comes_back_too(int4: Make, tmp_path: Path) -> None:
    source = int4(num_hidden_layers=2)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "note": "\ud83d"}))
    into(source, "sm90", tmp_path / "out")
    assert validate(tmp_path / "out").passed
    back(tmp_path / "out", tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def test_one_expert_and_ranks_of_one(gpt_oss_config: dict[str, Any], tmp_path: Path) -> None:
    one = gpt_oss_config | {"num_local_experts": 1, "num_experts_per_tok": 1}
    write_checkpoint(tmp_path / "one", one, dtype="gptoss_mxfp4")
    into(tmp_path / "one", "marlin-fp8", tmp_path / "out", tp=5)
    assert validate(tmp_path / "out").passed
    back(tmp_path / "out", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "one")
