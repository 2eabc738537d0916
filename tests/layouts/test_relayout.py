"""Whole checkpoints into every layout and back, byte for byte; refused before a byte is written; killed anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import w4afp8.kernels
from test_resume import FINISHED, Countdown, in_child, tree, wait
from w4afp8 import conversion, layouts
from w4afp8.card import write as write_card
from w4afp8.checkpoint.journal import Journal
from w4afp8.cli import cli, code_of
from w4afp8.errors import (
    CheckpointError,
    FormatError,
    QuantizationError,
    RecipeError,
    ResumeError,
    Stopped,
    W4AFP8Error,
)
from w4afp8.hub import shipment
from w4afp8.layouts import _record
from w4afp8.layouts._record import Record, canonical_checksum
from w4afp8.recipes._recipe import Resume
from w4afp8.relayout.back import prepare_back, restore
from w4afp8.relayout.plan import prepare
from w4afp8.relayout.run import lay_out
from w4afp8.synthetic import write_checkpoint
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import digest, sealed_files, take_seal

Make = Callable[..., Path]
SHARD_GB = 0.0003
FLIPS = 60


def into(source: Path, name: str, out: Path, *, tp: int = 1, ep: int = 1, tolerance: float = 0, **how: Any) -> Record:
    return lay_out(prepare(source, name, out, tp=tp, ep=ep, tolerance=tolerance, shard_gb=SHARD_GB), **how)


def back(laid_out: Path, out: Path, jobs: int | None = None, **how: Any) -> None:
    laid, needs, jobs = prepare_back(laid_out, jobs)
    with laid:
        restore(laid, needs, out, jobs, **how)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.mark.parametrize("tp, ep", [(1, 1), (3, 2)])
def test_int4_goes_into_every_layout_and_back_byte_for_byte(int4: Make, tmp_path: Path, tp: int, ep: int) -> None:
    source = int4(moe_intermediate_size=384, num_hidden_layers=2)
    for name in layouts.names():
        out, again = tmp_path / name, tmp_path / f"{name}-back"
        tolerance = 0.07 if name == "vllm-cutlass" else 0
        if isinstance(layouts.get(name).int4, str):
            with pytest.raises(RecipeError, match=f"{name} does not hold sglang_w4afp8"):
                into(source, name, out)
            continue
        try:
            into(source, name, out, tp=tp, ep=ep, tolerance=tolerance)
        except FormatError as error:
            assert name == "machete-e4m3" and "holds one scale per row" in str(error) and not out.exists()
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


def test_a_layout_is_no_source_of_another(int4: Make, tmp_path: Path) -> None:
    source, out = int4(num_hidden_layers=2), tmp_path / "out"
    into(source, "sm90", out)
    with pytest.raises(RecipeError, match="has the layout sm90; go back first"):
        into(out, "marlin", tmp_path / "none")
    with pytest.raises(CheckpointError, match="has the runtime layout sm90, whose stacks are no checkpoint's tensors"):
        conversion.prepare(out, "compressed_tensors_w4a8", tmp_path / "none", 1.0)
    with pytest.raises(RecipeError, match="a layout is always compared whole"):
        validate(out, sample=4)
    with pytest.raises(RecipeError, match="a layout is compared byte for byte, nothing is multiplied"):
        validate(out, device="cuda")
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


def stops_after(count: int) -> Callable[[], bool]:
    asked: Iterator[bool] = iter([False] * count + [True] * 99)
    return lambda: next(asked)


def test_a_stopped_run_goes_on_to_the_same_bytes(int4: Make, tmp_path: Path) -> None:
    source, whole, cut = int4(), tmp_path / "whole", tmp_path / "parts"
    into(source, "machete-lyra", whole, ep=2)
    for _ in range(2):
        with pytest.raises(Stopped, match="stopped before layer-"):
            into(source, "machete-lyra", cut, ep=2, stop=stops_after(2))
        assert not (cut / "config.json").exists()
    with pytest.raises(ResumeError, match="made from something else"):
        into(source, "machete-lyra", cut)
    into(source, "machete-lyra", cut, ep=2, resume=Resume.REQUIRED)
    assert files(cut) == files(whole)
    with pytest.raises(Stopped, match="stopped before model-"):
        back(cut, tmp_path / "again", stop=stops_after(2))
    back(cut, tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def test_never_resuming_begins_anew(int4: Make, tmp_path: Path) -> None:
    source, out = int4(), tmp_path / "out"
    with pytest.raises(Stopped):
        into(source, "marlin", out, stop=stops_after(2))
    into(source, "sm90", out, ep=2, resume=Resume.NEVER)
    assert validate(out).passed
    with pytest.raises(Stopped):
        back(out, tmp_path / "again", stop=stops_after(2))
    back(out, tmp_path / "again", resume=Resume.NEVER)
    assert files(tmp_path / "again") == files(source)


def test_never_resuming_also_forgets_a_run_that_was_cut_among_its_last_files(
    int4: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = int4(num_hidden_layers=2), tmp_path / "out"
    (source / "tokenizer.json").write_text("{}")

    def full(record: Record, folder: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(Record, "write", full)
        into(source, "marlin", out)
    assert (out / "tokenizer.json").is_file()
    into(source, "sm90", out, resume=Resume.NEVER)
    assert validate(out).passed


@pytest.mark.parametrize("way", ["into", "back", "format"])
def test_never_resuming_does_not_forget_the_source(int4: Make, tmp_path: Path, way: str) -> None:
    """A run that is killed in its last moment leaves a whole checkpoint and its journal."""
    source = int4(num_hidden_layers=2)
    if way == "back":
        into(source, "sm90", tmp_path / "laid")
        source = tmp_path / "laid"
    Journal(source / "w4afp8" / "state").open({"tool": "killed"})
    before = files(source)
    with pytest.raises(CheckpointError, match="is the source itself"):
        if way == "into":
            into(source, "sm90", source, resume=Resume.NEVER)
        elif way == "back":
            back(source, source, resume=Resume.NEVER)
        else:
            prepared = conversion.prepare(source, "compressed_tensors_w4a8", source, 1.0)
            conversion.run(prepared, resume=Resume.NEVER)
    assert files(source) == before


def test_the_bytes_do_not_depend_on_the_jobs(int4: Make, gpt_oss: Path, tmp_path: Path) -> None:
    """Of experts with tensors of their own, and of stacked ones, whose parts are digested in order."""
    for source in (int4(num_hidden_layers=2), gpt_oss):
        out = tmp_path / f"{source.name}-laid"
        into(source, "marlin", out, ep=2)
        for jobs in (1, 5):
            back(out, tmp_path / f"{source.name}-{jobs}", jobs)
            assert files(tmp_path / f"{source.name}-{jobs}") == files(source)
    with pytest.raises(RecipeError, match="--jobs is 0"):
        back(out, tmp_path / "none", 0)


@pytest.mark.parametrize("direction", ["into", "back"])
def test_killed_between_any_two_steps_on_the_disk(int4: Make, tmp_path: Path, direction: str) -> None:
    source = int4(num_hidden_layers=2)
    into(source, "machete-lyra", tmp_path / "laid", ep=2)

    def work(out: Path, countdown: int | None = None) -> int:
        counter = Countdown(countdown)
        counter.install()
        if direction == "into":
            into(source, "machete-lyra", out, ep=2)
        else:
            back(tmp_path / "laid", out)
        (tmp_path / "steps").write_text(str(counter.seen))
        return 0

    assert wait(in_child(lambda: work(tmp_path / "whole"))) == 0
    steps, expected = int((tmp_path / "steps").read_text()), tree(tmp_path / "whole")
    for number in range(10):
        out, step = tmp_path / f"killed-{number}", number * steps // 10
        assert wait(in_child(lambda out=out, step=step: work(out, step))) == -9
        code = wait(in_child(lambda out=out: work(out)))
        assert code in (0, FINISHED), (step, code)
        assert tree(out) == expected, step


def test_every_flipped_byte_is_found(int4: Make, gpt_oss: Path, tmp_path: Path) -> None:
    source = int4(moe_intermediate_size=256, num_hidden_layers=2)
    made = {
        "sm90": into(source, "sm90", tmp_path / "sm90"),
        "lyra": into(source, "machete-lyra", tmp_path / "lyra", tp=2, ep=2),
        "near": into(source, "vllm-cutlass", tmp_path / "near", tp=2, tolerance=0.07),
        "oss": into(gpt_oss, "flashinfer-sm90-v2", tmp_path / "oss-out", tp=3),
    }
    folders = [tmp_path / name for name in ("sm90", "lyra", "near", "oss-out")]
    assert len(made) == len(folders) and all(validate(folder).passed for folder in folders)
    draw = random.Random(11)
    for _ in range(FLIPS):
        folder = draw.choice(folders)
        name, path = draw.choice(sorted(sealed_files(folder).items()))
        before = path.read_bytes()
        at, bit = draw.randrange(len(before)), draw.randrange(8)
        after = bytearray(before)
        after[at] ^= 1 << bit
        path.write_bytes(after)
        assert not validate(folder).passed, f"bit {bit} of byte {at} of {folder.name}/{name}"
        path.write_bytes(before)


def test_a_damaged_layout_does_not_become_a_checkpoint(int4: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2), "sm90", out)
    path = next(p for p in sorted(out.glob("*.safetensors")) if any(".w13" in n for n in load_file(p)))
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"its bytes are not those of the canonical checkpoint; .* is damaged"):
        back(out, tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()


@pytest.mark.parametrize("what", [".w13_scale", ".w2", ".input_scale", "q_a_layernorm.weight"])
@pytest.mark.parametrize("change", ["longer", "flat"])
def test_tensors_of_other_shapes_are_named(int4: Make, tmp_path: Path, what: str, change: str) -> None:
    """Sound files, so only who knows the layout sees that they do not belong here."""
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    for path in out.rglob("*.safetensors"):
        held = load_file(path)
        name = next((name for name in held if name.endswith(what)), None)
        if name is not None:
            held[name] = torch.cat([held[name], held[name]]) if change == "longer" else held[name].reshape(1, -1)
            save_file(held, path, {"format": "pt"})
    report = validate(out)
    assert not report.passed and what in str(report.problems[0])
    if change == "longer" or what.startswith((".w", ".input")):
        with pytest.raises(CheckpointError, match=r"expected|its bytes are not those"):
            back(out, tmp_path / "again")
        assert not (tmp_path / "again" / "config.json").exists()


def test_half_a_character_in_the_config_comes_back_too(int4: Make, tmp_path: Path) -> None:
    source = int4(num_hidden_layers=2)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "note": "\ud83d"}))
    into(source, "sm90", tmp_path / "out")
    assert validate(tmp_path / "out").passed
    back(tmp_path / "out", tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def forged(folder: Path, **changes: Any) -> None:
    """A record that says something else, with a checksum that fits it."""
    record = replace(_record.read(folder), **changes)
    (folder / _record.RECORD).write_bytes(record.render())


EVIL = {"bytes": 1, "sha256": "0" * 64, "kept": True}
HOSTILE: dict[str, tuple[Callable[[Record], dict[str, Any]], str]] = {
    "file": (lambda r: {"files": r.files | {"../evil": EVIL}}, "leaves the directory"),
    "root": (lambda r: {"files": r.files | {"/evil": EVIL}}, "leaves the directory"),
    "shard": (lambda r: {"shards": {f"../{n}": s for n, s in r.shards.items()}}, "is no plain file name"),
    "no name": (lambda r: {"shards": {f"{n}\0": s for n, s in r.shards.items()}}, "is no plain file name"),
    "long name": (lambda r: {"shards": {n * 99: s for n, s in r.shards.items()}}, "is no plain file name"),
    "half a name": (lambda r: {"shards": {f"{n}\ud83d": s for n, s in r.shards.items()}}, "is no plain file name"),
    "half a file": (lambda r: {"files": r.files | {"\ud83d": EVIL}}, "a name that no file can have"),
    "no checksum": (lambda r: {"canonical": 5}, "canonical is 5, expected text"),
    "no layout": (lambda r: {"layout": ["sm90"]}, "layout is .'sm90'., expected text"),
    "fewer digests": (lambda r: {"tensors": dict([*r.tensors.items()][1:])}, "its digest or its header is missing"),
    "ranks": (lambda r: {"tp": 2**62, "ep": 2**62}, "do not divide|at most --tp"),
    "no ranks": (lambda r: {"tp": 0}, "tp is 0"),
    "holding": (lambda r: {"holding": 7}, "has no holding 7"),
    "sizes": (lambda r: {"sizes": r.sizes | {"experts": 2**40}}, "the kept headers say"),
    "digest": (lambda r: {"tensors": dict.fromkeys(r.tensors, None)}, "no SHA-256"),
    "layout": (lambda r: {"layout": "sm91"}, "unknown layout"),
    "version": (lambda r: {"version": 9}, "version 9 of sm90"),
    "form": (lambda r: {"form": "mxfp4"}, "the kept headers say"),
}


@pytest.mark.parametrize("lie", HOSTILE)
def test_a_forged_record_writes_nothing_anywhere(int4: Make, tmp_path: Path, lie: str) -> None:
    out, again = tmp_path / "out", tmp_path / "in" / "again"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    changes, says = HOSTILE[lie]
    forged(out, **changes(_record.read(out)))
    with pytest.raises(W4AFP8Error, match=says):
        back(out, again)
    assert not (tmp_path / "in").exists() and not (tmp_path / "evil").exists()
    report = validate(out)
    assert not report.passed and not report.proven


def test_a_link_out_of_a_layout_is_not_followed(int4: Make, tmp_path: Path) -> None:
    out, secret = tmp_path / "out", tmp_path / "secret"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    kept = out / _record.FILES / "config.json"
    secret.write_bytes(kept.read_bytes())
    kept.unlink()
    kept.symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint"):
        back(out, tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()


def test_a_strange_file_is_named(int4: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2), "sm90", out)
    (out / "rank-9-of-9").mkdir()
    (out / "rank-9-of-9" / "model.safetensors").write_bytes(b"x")
    report = validate(out)
    assert [p.who for p in report.problems] == ["rank-9-of-9/model.safetensors"]


def prove(folder: Path, against: Path | None = None) -> bool:
    """As `w4afp8 validate` does it."""
    seal = take_seal(folder)
    report = validate(folder, against)
    gate.write_verdict(folder, report, seal)
    assert report.passed, [str(p) for p in report.problems]
    return report.proven


def test_a_proof_of_the_canonical_checkpoint_proves_the_layout(
    quantized_toy: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    origin, canonical = quantized_toy
    source = tmp_path / "toy-W4AFP8"
    shutil.copytree(canonical, source)
    into(source, "sm90", tmp_path / "early")
    assert prove(source, origin)
    into(source, "sm90", tmp_path / "late", ep=2)
    assert prove(tmp_path / "late"), "the proof travels with the bytes"
    assert not prove(tmp_path / "early"), "nothing was proven then"
    assert prove(tmp_path / "early", source), "the canonical directory has been proven since"
    save_file({"x": torch.ones(1)}, source / "x.safetensors")
    assert prove(tmp_path / "early", source), "what is no shard of it is no part of the checksum"
    (source / "x.safetensors").unlink()
    report = validate(tmp_path / "early", origin)
    assert not report.passed and "another checkpoint" in str(report.problems[0])
    assert gate.state(tmp_path / "late").state is gate.State.PROVEN
    card = write_card(tmp_path / "late").path.read_text()
    assert "in the runtime layout `sm90` (version 1)" in card and "**Proven**" in card
    assert "torch.ops.w4afp8.fused_moe" in card and "1 tensor-parallel x 2 expert-parallel" in card
    assert gate.state(tmp_path / "late").state is gate.State.PROVEN, "a card is no part of what was proven"
    phases = {phase.title: [file.name for file in phase.files] for phase in shipment.pack(tmp_path / "late", {})}
    assert all(name.endswith(".safetensors") for name in phases["weights"])
    assert any(name.startswith("rank-1-of-2/") for name in phases["weights"])
    assert sorted(phases["index and config"]) == sorted(
        f"{tag}{name}" for tag in ("", "rank-0-of-2/", "rank-1-of-2/")
        for name in ("config.json", "model.safetensors.index.json")
    )  # fmt: skip
    back(tmp_path / "late", tmp_path / "again")
    assert files(tmp_path / "again") == files(source), "the verdict and the report come back too"


@pytest.fixture
def w4afp8(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def invoke(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = code_of(lambda: cli.main(args=[str(w) for w in words], standalone_mode=False))
        return code, *capsys.readouterr()

    return invoke


def test_inside_a_checkpoint_no_further_words_are_needed(
    int4: Make, tmp_path: Path, w4afp8: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = int4(num_hidden_layers=2)
    monkeypatch.chdir(source)
    code, text, err = w4afp8("convert", "--layout", "sm90")
    assert code == 0 and "read back from its stack" in text, err
    assert (tmp_path / "int4-sm90" / "config.json").is_file(), "beside the checkpoint, not in it"
    monkeypatch.chdir(tmp_path)
    code, text, _ = w4afp8("inspect", "int4-sm90")
    assert code == 0 and "layout sm90 version 1" in text and "w13_scale" in text
    code, text, _ = w4afp8("convert", "int4-sm90", "--layout", "canonical", "--json")
    assert code == 0 and json.loads(text)["output"] == "int4-sm90-canonical"
    assert files(tmp_path / "int4-sm90-canonical") == files(source)
    code, text, _ = w4afp8("convert", "int4", "--layout", "sglang-cutlass", "--ep", "2", "--json")
    said = json.loads(text)
    assert code == 0 and (said["layout"], said["ep"], said["from"]) == ("sglang-cutlass", 2, "sglang_w4afp8")
    code, text, _ = w4afp8("inspect", "int4-sglang-cutlass/rank-1-of-2")
    assert code == 0 and "rank 1 of 2, experts 2..3" in text
    code, text, _ = w4afp8("validate", "int4-sglang-cutlass")
    assert code == 0 and "canonical proof" in text
    assert "sglang-cutlass" in (tmp_path / "int4-sglang-cutlass" / "w4afp8" / "report.html").read_text()


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "give either --format or --layout"),
        (("--format", "compressed_tensors_w4a8", "--layout", "sm90"), "give either --format or --layout"),
        (("--format", "compressed_tensors_w4a8", "--tp", "2"), "belong to a --layout"),
        (("--layout", "canonical", "--ep", "2"), "belong to a --layout"),
        (("--layout", "canonical", "--shard-gb", "2"), "the shards that there were"),
        (("--layout", "canonical", "--shard-gb", "5"), "the shards that there were"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    tmp_path: Path, w4afp8: Callable[..., tuple[int, str, str]], words: tuple[str, ...], says: str
) -> None:
    code, _, err = w4afp8("convert", tmp_path, *words)
    assert code == 2 and says in " ".join(err.split())


def test_one_expert_and_ranks_of_one(gpt_oss_config: dict[str, Any], tmp_path: Path) -> None:
    one = gpt_oss_config | {"num_local_experts": 1, "num_experts_per_tok": 1}
    write_checkpoint(tmp_path / "one", one, dtype="gptoss_mxfp4")
    into(tmp_path / "one", "marlin-fp8", tmp_path / "out", tp=5)
    assert validate(tmp_path / "out").passed
    back(tmp_path / "out", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "one")
