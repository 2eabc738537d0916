"""Every byte of the source is looked at once before the first is written."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES
from w4afp8.convert import survey
from w4afp8.errors import QuantizationError


def checkpoint(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def look(folder: Path, known: survey.Identity | None = None) -> tuple[survey.Identity, int]:
    read: list[int] = []
    with CheckpointReader(folder) as reader:
        return survey.survey_values(reader, known or {}, read.append), sum(read)


def test_every_shard_gets_the_digest_of_its_file(miniature: Path) -> None:
    found, _ = look(miniature)
    for path in miniature.glob("*.safetensors"):
        assert found[path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found[path.name]["bytes"] == path.stat().st_size


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, dtype: str, bad: float) -> None:
    values = torch.randn(3, 50).to(DTYPES[dtype])
    values[1, 7] = bad
    folder = checkpoint(tmp_path / "m", fine=torch.ones(2), sick=values)
    with pytest.raises(
        QuantizationError, match=r"sick .* in model.safetensors: element 57 is NaN or infinite"
    ) as caught:
        look(folder)
    assert "fine" not in str(caught.value) and caught.value.exit_code == 6


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_both_nans_of_e4m3_are_named(tmp_path: Path, byte: int) -> None:
    codes = torch.randint(0, 0x7F, (4, 4), dtype=torch.uint8)
    codes[3, 3] = byte
    with pytest.raises(QuantizationError, match="element 15"):
        look(checkpoint(tmp_path / "m", sick=codes.view(torch.float8_e4m3fn)))


@pytest.mark.parametrize("dtype", sorted(survey.NOT_FINITE))
def test_exactly_the_bit_patterns_that_are_not_finite_are_found(dtype: str) -> None:
    """Exhaustive for 8 and 16 bits, every exponent and the edges of the mantissa for 32."""
    kind = DTYPES[dtype]
    if kind.itemsize == 4:
        high = torch.arange(2**16, dtype=torch.int64)
        bits = torch.cat([(high << 16) | low for low in (0, 1, 0x7FFF, 0x8000, 0xFFFF)])
        every = bits.to(torch.int32) if bits.max() < 2**31 else bits.to(torch.uint32).view(torch.int32)
    else:
        every = torch.arange(2 ** (8 * kind.itemsize), dtype=torch.int32).to(
            torch.uint8 if kind.itemsize == 1 else torch.int16
        )
    finite = torch.isfinite(every.view(kind).float())
    raw = every.view(torch.uint8).view(len(every), -1)
    assert survey.first_not_finite(raw[finite].flatten(), dtype) is None
    integers, mask = survey.NOT_FINITE[dtype]
    flagged = raw[~finite].flatten().view(integers).bitwise_and(mask) == mask
    assert bool(flagged.all()) and len(flagged) == int((~finite).sum()) > 0


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(survey.NOT_FINITE)))
def test_other_dtypes_have_no_numbers_to_judge(dtype: str) -> None:
    assert survey.first_not_finite(torch.full((64,), 255, dtype=torch.uint8), dtype) is None


def test_all_sick_tensors_are_named_at_once(tmp_path: Path) -> None:
    nan = torch.full((2,), math.nan)
    with pytest.raises(QuantizationError, match="2 problems") as caught:
        look(checkpoint(tmp_path / "m", a=nan, b=torch.ones(1), c=nan.clone()))
    assert "a (F32" in str(caught.value) and "c (F32" in str(caught.value)


def test_a_shard_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", a=torch.randn(100))
    first, _ = look(folder)
    forged = {"model.safetensors": {**first["model.safetensors"], "sha256": "remembered"}}
    assert look(folder, forged)[0]["model.safetensors"]["sha256"] == "remembered"
    later = {"model.safetensors": {**forged["model.safetensors"], "mtime_ns": 1}}
    assert look(folder, later)[0] == first
    other = {"model.safetensors": {**forged["model.safetensors"], "bytes": 1}}
    assert look(folder, other)[0] == first


def test_trusting_runs_keep_sizes_and_times(miniature: Path) -> None:
    with CheckpointReader(miniature) as reader:
        found = survey.headers_identity(reader)
        assert sorted(found) == sorted(reader.shards)
    assert all(entry["sha256"] is None and entry["bytes"] > 0 for entry in found.values())
