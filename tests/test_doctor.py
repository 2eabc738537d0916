"""The doctor says what is there, what a missing piece costs and how to get it, and asks no network."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from w4afp8 import doctor
from w4afp8.cli import cli, code_of
from w4afp8.doctor import Finding, Health, examine

REPOSITORY = Path(__file__).parent.parent


def found(folder: Path = REPOSITORY) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(folder)}


def test_the_ranges_are_those_of_the_project() -> None:
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, (oldest, too_new) in doctor.REQUIRED.items():
        assert f"{name}>={oldest}" + (f",<{too_new}" if too_new else "") in wanted


def test_what_is_not_well_says_what_it_costs_and_how_to_get_it() -> None:
    for finding in examine(REPOSITORY):
        assert finding.found
        assert (finding.health is Health.OK) == (not finding.cost) == (not finding.get), finding


@pytest.mark.parametrize(
    ("have", "health"), [("1.33.0", Health.OK), ("2.4.0", Health.OK), ("1.32.9", Health.BROKEN), ("3.0", Health.BROKEN),
                         (None, Health.BROKEN)],
)  # fmt: skip
def test_a_package_out_of_range_is_broken(monkeypatch: pytest.MonkeyPatch, have: str | None, health: Health) -> None:
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: have if name == "huggingface_hub" else original(name))
    assert found()["huggingface_hub"].health is health


def test_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = SimpleNamespace(name="a Hopper", total_memory=80 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    for name, line in (("nvidia-smi", "echo 999.1"), ("nvcc", "echo Cuda compilation tools, release 12.9")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setattr(doctor.build, "library", lambda: tmp_path / "nvcc")
    here = found()
    assert here["GPU"].found == "a Hopper (80 GB), a Hopper (80 GB)"
    assert here["driver"].found == "999.1" and "release 12.9" in here["compiler"].found
    for name in ("GPU", "driver", "compiler", "kernels", "Hub login"):
        assert here[name].health is Health.OK, name
    assert "hf_x" not in json.dumps([finding.to_json() for finding in here.values()])
    gpu.major = 8
    assert found()["GPU"].health is Health.LACKS


def test_a_machine_with_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.build, "find_nvcc", lambda: None)
    monkeypatch.setattr(doctor.build, "cached", lambda: tmp_path / "none")
    monkeypatch.setattr(doctor.build, "PACKAGED", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "is_logged_in", lambda: False)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    here = found(tmp_path / "not" / "there" / "yet")
    for name in ("GPU", "driver", "compiler", "kernels", "Hub login", "disk"):
        assert here[name].health is Health.LACKS, name
    assert "1 GB free" in here["disk"].found


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = lambda *words: code_of(lambda: cli.main(args=["doctor", *words], standalone_mode=False))  # noqa: E731
    assert run() == 0
    text = capsys.readouterr().out
    assert "torch" in text and "Hub login" in text
    assert run("--json") == 0
    assert {"name", "health", "found", "cost", "get"} == set(json.loads(capsys.readouterr().out)[0])
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert run() == 4
    assert "the work does not go without" in capsys.readouterr().err
