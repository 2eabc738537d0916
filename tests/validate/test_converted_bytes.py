"""Every byte of two conversions: 200 trials each, one beside the source, one led back to its proof."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conversions import (
    GPT_OSS,
    MODELOPT,
    SGLANG,
    Ours,
    Published,
    convert,
    prove,
)

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
