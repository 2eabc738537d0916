"""`inspect` says whether a directory was proven, when, and what changed, and reads no weight for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from w4afp8.cli import cli, code_of
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import VALIDATION, take_seal


@pytest.fixture
def folder(quantized_toy: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized_toy[1], tmp_path / "toy-W4AFP8"))


def inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert code_of(lambda: cli.main(args=["inspect", str(folder)], standalone_mode=False)) == 0
    return capsys.readouterr().out


def test_each_state_is_said_with_its_reason(
    folder: Path, quantized_toy: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unvalidated: no w4afp8/validation.json" in inspect(folder, capsys)
    gate.write_verdict(folder, validate(folder, quantized_toy[0]), take_seal(folder))
    when = json.loads((folder / VALIDATION).read_text())["at"][:16].replace("T", " ")
    read = gate.digests
    monkeypatch.setattr(gate, "digests", lambda paths: pytest.fail("a file was read"))
    assert f"proven, validated {when} UTC: every check holds beside source\n" in inspect(folder, capsys)
    for path in folder.rglob("*"):
        os.utime(path)
    assert "files have another date than the proof: `w4afp8 push` compares every byte" in inspect(folder, capsys)
    (folder / "tokenizer.json").write_text("{}")
    assert f"stale, validated {when} UTC: tokenizer.json has 2 bytes, had" in inspect(folder, capsys)
    monkeypatch.setattr(gate, "digests", read)
    gate.write_verdict(folder, validate(folder, quantized_toy[0]), take_seal(folder))
    assert "\nfailed, validated" in inspect(folder, capsys)


def test_a_source_is_not_asked_for_a_proof(
    quantized_toy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "validated" not in inspect(quantized_toy[0], capsys)
    assert code_of(lambda: cli.main(args=["inspect", str(quantized_toy[0]), "--json"], standalone_mode=False)) == 0
    assert json.loads(capsys.readouterr().out)["gate"] is None
