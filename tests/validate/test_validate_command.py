"""`w4afp8 validate` at the command line: what it writes, when it writes nothing, and what it cannot mean."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from w4afp8 import conversion
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


@pytest.fixture
def converted(out: Path, quantized_toy: tuple[Path, Path], run: Run, tmp_path: Path) -> Path:
    """A conversion to a format that is never quantized to, of a checkpoint that was proven."""
    assert run(out, "--against", quantized_toy[0])[0] == 0
    there = tmp_path / "there"
    conversion.run(conversion.prepare(out, "modelopt_w4a8_awq", there, 0.001))
    return there


def test_a_conversion_is_proven_by_its_sources_proof_or_beside_it(run: Run, converted: Path, out: Path) -> None:
    code, text, err = run(converted)
    assert code == 0, err
    assert f"next: w4afp8 push {converted} --repo ORG/NAME" in text
    assert "led back to sglang_w4afp8, every tensor has the bytes with which out was proven" in " ".join(text.split())
    assert gate.state(converted).state is State.PROVEN
    assert "led back to sglang_w4afp8" in (converted / "w4afp8/report.html").read_text()
    code, text, _ = run(converted, "--against", out, "--json")
    said = json.loads(text)
    assert (
        code == 0
        and said["proven"]
        and said["claim"] == "every number is that of out, and what was carried has its bytes"
    )
    path = next(converted.glob("model-*.safetensors"))
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert gate.state(converted).state is State.STALE
    code, text, err = run(converted, "--json")
    assert code == 7 and "the checkpoint is not what it promises" in err and not json.loads(text)["passed"]


def test_a_conversion_looks_for_its_source_and_says_where_to_go_on(run: Run, converted: Path, out: Path) -> None:
    (converted / "w4afp8/source-validation.json").unlink()
    code, text, _ = run(converted)  # the file is missing, and the source lies beside
    assert code == 7 and "source-validation.json" in text and gate.state(converted).state is State.FAILED
    shutil.rmtree(converted)
    (out / "w4afp8/validation.json").unlink()
    conversion.run(conversion.prepare(out, "modelopt_w4a8_awq", converted, 0.001))
    code, text, _ = run(converted)
    assert code == 0 and "not a proof" in text
    assert "out, which was converted, is unvalidated" in str(gate.state(converted))
    out.rename(out.with_name("elsewhere"))
    code, text, _ = run(converted)
    assert code == 0 and "out is not here, and had no proof when it was converted" in str(gate.state(converted))
    assert run(converted, "--against", out.with_name("elsewhere"))[0] == 0


def test_a_conversion_is_compared_whole_and_multiplies_nothing(run: Run, converted: Path) -> None:
    code, _, err = run(converted, "--quick")
    assert code == 2 and "a conversion is always compared whole" in err
    code, _, err = run(converted, "--device", "cuda")
    assert code == 2 and "number by number, nothing is multiplied" in err


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_promises_nothing_is_refused_and_left_alone(run: Run, quantized_toy: tuple[Path, Path], out: Path) -> None:
    """A verdict in a source's directory would make every conversion of it wait for a proof that cannot be given."""
    source = Path(shutil.copytree(quantized_toy[0], out.with_name("source")))
    (out.with_name("empty")).mkdir()
    unfinished = Path(shutil.copytree(out, out.with_name("unfinished")))
    (unfinished / "config.json").unlink()
    (unfinished / "w4afp8/state").mkdir()
    (unfinished / "w4afp8/state/fingerprint.json").write_text("{}")
    for folder, words in (
        (source, "a source, its experts stand in deepseek_fp8"),
        (out.with_name("empty"), "no checkpoint, found neither config.json nor"),
        (unfinished, "unfinished, config.json is written last; run the command that writes it again"),
        (out / "config.json", "a file, expected a directory"),
        (out.with_name("nothing"), "no such directory"),
    ):
        before = files_of(folder) if folder.is_dir() else {}
        code, text, err = run(folder)
        assert code == 3 and words in err and not text, (folder, err)
        assert not folder.is_dir() or files_of(folder) == before


def test_another_source_is_no_verdict(run: Run, quantized_toy: tuple[Path, Path], converted: Path, out: Path) -> None:
    assert run(converted)[0] == 0
    before = files_of(converted)
    code, text, err = run(converted, "--against", quantized_toy[0])
    assert code == 7 and text.startswith("Not compared") and "no verdict was written" in err
    assert "found experts in deepseek_fp8, expected in sglang_w4afp8" in " ".join(text.split())
    assert files_of(converted) == before and gate.state(converted).state is State.PROVEN
    code, _, err = run(out, "--against", out)
    assert code == 2 and "its experts stand in sglang_w4afp8 already" in err
    code, _, err = run(converted, "--against", out, "--against", quantized_toy[0])
    assert code == 2 and "--against is given 2 times" in err
    code, _, err = run(out, "--against", quantized_toy[0] / "config.json")
    assert code == 2 and "a file, expected a checkpoint directory" in err


def test_what_was_quantized_and_converted_twice_finds_its_source(
    run: Run, out: Path, quantized_toy: tuple[Path, Path], tmp_path: Path
) -> None:
    """The first conversion is proven after the second was made of it: no proof travelled, the source decides."""
    assert run(out, "--against", quantized_toy[0])[0] == 0
    first, second = tmp_path / "first", tmp_path / "second"
    conversion.run(conversion.prepare(out, "compressed_tensors_w4a8", first, 0.001))
    conversion.run(conversion.prepare(first, "sglang_w4afp8", second, 0.001))
    code, text, _ = run(second)
    assert code == 0 and "first, which was converted, is unvalidated" in " ".join(text.split())
    assert run(first)[0] == 0
    code, text, _ = run(second)
    assert code == 0 and "every number is that of first" in " ".join(text.split())
    assert gate.state(second).state is State.PROVEN
    first.rename(tmp_path / "elsewhere")
    (second / "w4afp8/validation.json").unlink()
    code, text, _ = run(second)
    assert code == 0 and f"`push` asks for: w4afp8 validate {second} --against first" in text


def test_where_no_verdict_can_be_kept_is_said_first(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    code, _, err = run(out)
    assert code == 4 and "cannot be written, and the verdict is kept there" in err and "--no-report" in err
    assert run(out, "--no-report")[0] == 0
