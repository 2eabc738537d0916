"""`w4afp8 validate` at the command line: what it writes, when it writes nothing, and what it cannot mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from w4afp8.cli import cli, code_of
from w4afp8.validate import gate
from w4afp8.validate.gate import State

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, standard output, standard error) of a validation."""

    def invoke(*words: object) -> tuple[int, str, str]:
        arguments = ["validate", *map(str, words)]
        code = code_of(lambda: cli.main(args=arguments, standalone_mode=False))
        return code, *capsys.readouterr()

    return invoke


@pytest.fixture
def out(quantized_toy: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized_toy[1], tmp_path / "out"))


def test_full_proves_and_quick_looks(run: Run, out: Path, quantized_toy: tuple[Path, Path]) -> None:
    source = quantized_toy[0]
    code, text, _ = run(out, "--against", source, "--quick")
    assert code == 0 and "a look, not a proof; `push` asks for: w4afp8 validate" in text
    assert json.loads((out / "w4afp8/validation.json").read_text())["mode"] == "quick"
    assert gate.state(out).state is State.UNVALIDATED
    code, text, _ = run(out, "--against", source)
    assert code == 0 and f"next: w4afp8 push {out} --repo ORG/NAME" in text
    content = json.loads((out / "w4afp8/validation.json").read_text())
    assert content["mode"] == "full" and gate.state(out).state is State.PROVEN
    code, text, _ = run(out, "--against", source, "--quick")
    assert code == 0 and "the proof of these very bytes is kept" in text
    assert gate.state(out).state is State.PROVEN


def test_no_report_writes_nothing(run: Run, out: Path, quantized_toy: tuple[Path, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(out, "--against", quantized_toy[0], "--no-report")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_a_failure_is_exit_7_and_kept(run: Run, out: Path, quantized_toy: tuple[Path, Path]) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": 3}))
    code, _, err = run(out, "--against", quantized_toy[0], "--quick")
    assert code == 7 and "the checkpoint is not what it promises" in err
    assert gate.state(out).state is State.FAILED


def test_the_verdict_says_what_multiplied(run: Run, out: Path, quantized_toy: tuple[Path, Path]) -> None:
    code, text, err = run(out, "--against", quantized_toy[0], "--device", "auto")
    assert code == 0, err
    said = json.loads((out / "w4afp8/validation.json").read_text())["proven_by"]
    assert said.startswith("plain torch") and f"(by {said})" in " ".join(text.split())
    assert said in (out / "w4afp8/report.html").read_text()


def test_a_gpu_that_is_not_there_is_exit_4_and_nothing_is_written(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = sorted(out.rglob("*"))
    monkeypatch.setattr("w4afp8.validate.seal.take_seal", lambda *a: pytest.fail("read every byte before it refused"))
    code, _, err = run(out, "--device", "cuda")
    assert code == 4 and "validate --device cuda: found no CUDA device" in err
    assert sorted(out.rglob("*")) == before


def test_two_samples_are_refused(run: Run, out: Path) -> None:
    code, _, err = run(out, "--quick", "--sample", 3)
    assert code == 2 and "give one" in err
    assert run(out / "none")[0] == 3
