"""Every byte of two conversions: 200 trials each, one beside the source, one led back to its proof."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversions import (
    CT,
    GPT_OSS,
    MODELOPT,
    SGLANG,
    Ours,
    Published,
    blamed,
    convert,
    forge,
    prove,
)
from rtn_writer import write_json

from w4afp8.validate import gate, validate
from w4afp8.validate.gate import State

WATCHED = {
    "weights": ("model-0*.safetensors", 120),
    "index": ("model.safetensors.index.json", 20),
    "config": ("config.json", 20),
    "account": ("w4afp8/conversion.json", 20),
    "proof": ("w4afp8/*.json", 20),
}  # files and trials


@pytest.mark.parametrize("kind", WATCHED)
@pytest.mark.parametrize("target", [MODELOPT, "compressed_tensors_mxfp4"])
def test_every_flipped_byte_is_caught(published: Published, ours: Ours, tmp_path: Path, kind: str, target: str) -> None:
    source = ours(SGLANG) if target == MODELOPT else published(GPT_OSS, "gptoss_mxfp4")
    out = convert(source, target, tmp_path / "out")
    beside = None if target == MODELOPT else source
    prove(out, beside)
    pattern, trials = WATCHED[kind]
    chance = random.Random(kind)
    files = sorted(path for path in out.glob(pattern) if path.name != "validation.json")
    missed = []
    for _ in range(trials):
        path = chance.choices(files, [file.stat().st_size for file in files])[0]
        whole = path.read_bytes()
        at, flip = chance.randrange(len(whole)), chance.randrange(1, 256)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        if validate(out, beside).passed:
            missed.append((path.name, at, flip))
        if gate.state(out).state is not State.STALE:
            missed.append((path.name, at, "the old proof stands"))
        path.write_bytes(whole)
    assert not missed
    assert gate.state(out).state is State.PROVEN and validate(out, beside).proven


def spans(path: Path) -> Iterator[tuple[str, int, int]]:
    """(tensor, begin, end) in a file."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for name, entry in json.loads(whole[8 : 8 + length]).items():
        if name != "__metadata__":
            yield name, *(8 + length + offset for offset in entry["data_offsets"])


def test_no_kind_of_tensor_is_forged_unseen(ours: Ours, tmp_path: Path) -> None:
    """One bit of one tensor of each name, by a converter that records the digests of what it wrote; no source."""
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    seen: set[str] = set()
    for path in sorted(out.glob("model-*.safetensors")):
        whole = path.read_bytes()
        for name, begin, end in spans(path):
            kind = re.sub(r"\d+", "N", name)
            if kind in seen:
                continue
            seen.add(kind)
            at = (begin + end) // 2
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            forge(out)
            assert not validate(out).passed, name
            path.write_bytes(whole)
    forge(out)
    assert validate(out).proven and len(seen) > 30


def test_the_account_that_cards_are_written_from_is_the_sources(ours: Ours, tmp_path: Path) -> None:
    source = ours(SGLANG)
    out = convert(source, CT, tmp_path / "out")
    record = json.loads((out / "w4afp8/record.json").read_text())
    for key, value, without in (("format", SGLANG, True), ("digests", {}, True), ("method", "gptq", False)):
        write_json(out / "w4afp8/record.json", record | {key: value})
        forge(out, record=False)
        assert f"record.json {key}" in blamed(validate(out, source))["record"][0]
        assert ("record" in blamed(validate(out))) is without
