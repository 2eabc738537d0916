"""A layout whose bytes, record or files are not what was written is refused, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from relayouts import Make, back, into
from safetensors.torch import load_file, save_file

from w4afp8.checkpoint.header import read_header
from w4afp8.errors import (
    CheckpointError,
    W4AFP8Error,
)
from w4afp8.layouts import _record
from w4afp8.layouts._record import Record
from w4afp8.validate import validate
from w4afp8.validate.seal import sealed_files

FLIPS = 60


def words_of(path: Path) -> set[str]:
    """What a complaint about a file may call it: its name, a tensor in it, the experts of a stack in it."""
    held = {spec.name for spec in read_header(path)[0]} if path.suffix == ".safetensors" else set()
    return {path.name, *held, *(f"{name.rpartition('.')[0]}." for name in held if ".experts.w" in name)}


def test_every_flipped_byte_is_found_and_named(int4: Make, gpt_oss: Path, tmp_path: Path) -> None:
    source = int4(moe_intermediate_size=256, num_hidden_layers=2)
    made = {
        "sm90": into(source, "sm90", tmp_path / "sm90"),
        "lyra": into(source, "machete-lyra", tmp_path / "lyra", tp=2, ep=2),
        "near": into(source, "vllm-cutlass", tmp_path / "near", tp=2, tolerance=0.07),
        "oss": into(gpt_oss, "flashinfer-sm90-v2", tmp_path / "oss-out", tp=3),
    }
    folders = [tmp_path / name for name in ("sm90", "lyra", "near", "oss-out")]
    assert len(made) == len(folders) and all(validate(folder).passed for folder in folders)
    words = {(folder, name): words_of(path) for folder in folders for name, path in sealed_files(folder).items()}
    draw = random.Random(11)
    for _ in range(FLIPS):
        folder = draw.choice(folders)
        name, path = draw.choice(sorted(sealed_files(folder).items()))
        before = path.read_bytes()
        at, bit = draw.randrange(len(before)), draw.randrange(8)
        after = bytearray(before)
        after[at] ^= 1 << bit
        path.write_bytes(after)
        problems = [str(problem) for problem in validate(folder).problems]
        where = f"bit {bit} of byte {at} of {folder.name}/{name}"
        assert problems and any(word in said for said in problems for word in words[folder, name]), (where, problems)
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


def test_a_digest_of_a_shard_that_no_shard_has_is_found_without_the_canonical_directory(
    int4: Make, tmp_path: Path
) -> None:
    """Each tensor's digest fits: only the whole file, made again, tells."""
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    record = _record.read(out)
    first = next(iter(record.shards))
    forged(out, shards=record.shards | {first: record.shards[first] | {"sha256": "0" * 64}})
    (problem,) = validate(out).problems
    assert problem.who == first and problem.expected == f"SHA-256 {'0' * 12}..."
    forged(out, shards=record.shards, canonical="1" * 64)
    problems = validate(out).check("canonical").problems
    assert [problem.who for problem in problems] == ["the checksum of all shards"]


@pytest.mark.parametrize(
    "lie",
    [{"read_by": "every engine"}, {"w13": ["up", "gate"]}, {"notes": ["padded"]}, {"sizes": {"hidden_stored": 7}}],
)
def test_a_record_that_says_other_things_than_its_layout_is_named(
    int4: Make, tmp_path: Path, lie: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    (field, value), record = *lie.items(), _record.read(out)
    forged(out, **{field: getattr(record, field) | value if isinstance(value, dict) else value})
    problems = validate(out).check("record").problems
    assert [problem.who for problem in problems] == [f"w4afp8/layout.json: {field}"]


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
