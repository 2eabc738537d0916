"""The gate: what may be published, what makes a proof stale, and every byte that is watched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from w4afp8.errors import ValidationError
from w4afp8.validate import gate, validate
from w4afp8.validate.gate import State
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import take_seal

WATCHED = {
    "weights": ("model-0*.safetensors", 60),
    "act_scales": ("act_scales.safetensors", 8),
    "index": ("model.safetensors.index.json", 12),
    "config": ("*config.json", 12),
    "tokenizer": ("tokenizer*", 12),
}  # files, and trials beyond one in each part of a file: more than 200 for each format


@pytest.fixture
def proven(quantized_toy: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy, proven."""
    source, out = quantized_toy[0], Path(shutil.copytree(quantized_toy[1], tmp_path / "out"))
    seal = take_seal(out)
    assert gate.write_verdict(out, validate(out, source), seal, origin_of(source))
    return source, out


def test_the_life_of_a_verdict(quantized_toy: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = quantized_toy[0], Path(shutil.copytree(quantized_toy[1], tmp_path / "out"))
    assert gate.state(out).state is State.UNVALIDATED
    seal = take_seal(out)
    gate.write_verdict(out, validate(out, source, sample=1), seal)
    found = gate.state(out)
    assert found.state is State.UNVALIDATED and "only 1 experts per layer" in str(found)
    gate.write_verdict(out, validate(out), seal)
    found = gate.state(out)
    assert found.state is State.UNVALIDATED and "no source given" in str(found)
    gate.write_verdict(out, validate(out, source), seal)
    assert gate.state(out).state is gate.state(out, deep=True).state is State.PROVEN
    assert not gate.write_verdict(out, validate(out, source, sample=1), seal), "a sample replaced a proof"
    assert gate.state(out).state is State.PROVEN


def test_the_verdict_holds_every_digest(proven: tuple[Path, Path]) -> None:
    _, out = proven
    content = json.loads((out / "w4afp8/validation.json").read_text())
    assert content["mode"] == "full" and content["proven"] and content["source"]["name"] == "source"
    assert content["tool_version"] and set(content["thresholds"]) == set(gate.THRESHOLDS)
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "act_scales.safetensors",
                 "w4afp8/record.json"):  # fmt: skip
        assert content["seal"]["files"][name]["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert content["seal"]["tensors"].keys() == index.keys()
    recorded = json.loads((out / "w4afp8/record.json").read_text())["digests"]
    assert recorded.items() <= content["seal"]["tensors"].items()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "act_scales.safetensors", "w4afp8/recipe.yaml"])
def test_a_changed_byte_is_named(proven: tuple[Path, Path], name: str) -> None:
    _, out = proven
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    found = gate.state(out)
    assert found.state is State.STALE and found.why == (f"{name} has other bytes",)


def test_only_a_deep_look_sees_a_change_behind_an_old_date(proven: tuple[Path, Path]) -> None:
    _, out = proven
    path = out / "act_scales.safetensors"
    was, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert gate.state(out).state is State.PROVEN
    assert gate.state(out, deep=True).state is State.STALE


def test_files_that_come_go_or_grow_are_named_and_a_touch_is_no_change(proven: tuple[Path, Path]) -> None:
    _, out = proven
    (out / "config.json").touch()
    (out / "README.md").write_text("a card may come later")
    (out / "w4afp8/evaluation.json").write_text("[]")
    assert gate.state(out).state is State.PROVEN
    (out / "tokenizer_config.json").unlink()
    (out / "new.py").write_text("pass")
    with (out / "tokenizer.json").open("a") as file:
        file.write(" ")
    said = str(gate.state(out))
    for word in ("tokenizer_config.json is gone", "new.py was not there", "tokenizer.json has "):
        assert word in said


def test_a_verdict_that_was_edited_is_stale(proven: tuple[Path, Path]) -> None:
    _, out = proven
    path = out / "w4afp8/validation.json"
    path.write_text(path.read_text().replace('"sample": null', '"sample": 3'))
    assert gate.state(out).state is State.STALE
    path.write_text("{")
    assert gate.state(out).state is State.STALE


def test_a_failure_is_kept_and_named(proven: tuple[Path, Path]) -> None:
    source, out = proven
    path = out / "act_scales.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    seal = take_seal(out)
    gate.write_verdict(out, validate(out, source, sample=1), seal)
    found = gate.state(out)
    assert found.state is State.FAILED and "input scales" in str(found)


def test_a_change_during_a_validation_is_refused(proven: tuple[Path, Path]) -> None:
    source, out = proven
    seal, report = take_seal(out), validate(out, source)
    (out / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValidationError, match="changed while it was being validated: tokenizer_config"):
        gate.write_verdict(out, report, seal)


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--some-name/snapshots/abc123"
    folder.mkdir(parents=True)
    assert origin_of(folder) == {"name": "org/some-name", "hub_id": "org/some-name", "revision": "abc123"}
    assert origin_of(tmp_path) == {"name": tmp_path.name, "hub_id": None, "revision": None}


def parts(path: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, begin, end) of a shard's length, header and tensors; of any other file as a whole."""
    whole = path.read_bytes()
    if path.suffix != ".safetensors":
        yield path, 0, len(whole)
        return
    (length,) = struct.unpack("<Q", whole[:8])
    yield from ((path, 0, 8), (path, 8, 8 + length))
    for name, entry in json.loads(whole[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield path, 8 + length + begin, 8 + length + end


@pytest.mark.parametrize("format_name", ["sglang_w4afp8", "compressed_tensors_w4a8"])
@pytest.mark.parametrize("kind", WATCHED)
def test_every_flipped_byte_is_caught(
    quantized_toys: Callable[[str], tuple[Path, Path]], tmp_path: Path, kind: str, format_name: str
) -> None:
    """One byte in every header, every tensor and every other file, and more anywhere; to any other value."""
    source, made = quantized_toys(format_name)
    out = Path(shutil.copytree(made, tmp_path / "out"))
    pattern, more = WATCHED[kind]
    chance = random.Random(kind)
    found = [part for path in sorted(out.rglob(pattern)) for part in parts(path)]
    assert found
    missed = []
    for path, begin, end in found + chance.choices(found, [end - begin for _, begin, end in found], k=more):
        whole = path.read_bytes()
        at, flip = chance.randrange(begin, end), chance.randrange(1, 256)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        if validate(out, source, sample=1).passed:
            missed.append((path.name, at, flip))
        path.write_bytes(whole)
    assert not missed
    assert validate(out, source, sample=1).passed


def test_a_blank_that_became_a_tab_is_caught_without_a_source(quantized_toy: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(quantized_toy[1], tmp_path / "out"))
    for name in ("config.json", "model.safetensors.index.json", "hf_quant_config.json", "w4afp8/record.json"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole.replace(b"  ", b" \t", 1))
        failed = [check.name for check in validate(out, sample=1).checks if check.failed]
        assert failed == ["written form"], name
        (out / name).write_bytes(whole)
    shard = next(out.glob("model-0*.safetensors"))
    whole = shard.read_bytes()
    for old, new in ((b'"pt"', b'"tp"'), (b'"format"', b'"fourth"')):
        shard.write_bytes(whole.replace(old, new, 1))
        assert not validate(out, sample=1).passed
