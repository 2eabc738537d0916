"""`w4afp8 bench` and `w4afp8 tune` at the command line: what they show, write and refuse."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_stand import ABOUT, MACHINE, Clock

from w4afp8.cli import cli, code_of
from w4afp8.kernels import settings, tuned
from w4afp8.measure import shapes
from w4afp8.measure import stand as stands
from w4afp8.measure.shapes import Gemm, Shape
from w4afp8.measure.stand import Stand

REPOSITORY = Path(__file__).parent.parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, standard output, standard error) of a command."""

    def invoke(*words: object) -> tuple[int, str, str]:
        code = code_of(lambda: cli.main(args=[*map(str, words)], standalone_mode=False))
        return code, *capsys.readouterr()

    return invoke


@pytest.fixture
def model(miniature: Path) -> tuple[object, ...]:
    return ("--model", miniature, "--tokens", "1,16")


@pytest.fixture
def on_stand(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(stands, "hopper", lambda what, way="chosen": stand)
    return stand


def test_bench_measures_shows_and_writes(run: Run, on_stand: Stand, model: tuple[object, ...], tmp_path: Path) -> None:
    out, plot = tmp_path / "cells.jsonl", tmp_path / "roof.png"
    code, text, err = run("bench", "gemm", *model, "--ep", 2, "--out", out, "--plot", plot)
    assert code == 0, err
    assert "tiny-dsv3/ep2.gate_up" in text and "tiny-dsv3.dense_down" in text and plot.is_file()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["record"] for line in lines] == ["machine"] + ["gemm"] * (len(lines) - 1)
    assert lines[0]["fp8_flop_us"] == MACHINE.flop_us and lines[1]["device"] == ABOUT["device"]
    assert run("bench", "gemm", "--from", out)[1] == text, "the same table from the file"
    shown = json.loads(run("bench", "gemm", "--from", out, "--json")[1])
    assert len(shown["cells"]) == len(lines) - 1 and shown["device"] == ABOUT["device"]
    code, _, err = run("bench", "moe", "--from", out)
    assert code == 2 and "found no run of `w4afp8 bench moe`" in err


def test_bench_moe_has_a_row_a_token_count(run: Run, on_stand: Stand, model: tuple[object, ...]) -> None:
    code, text, err = run("bench", "moe", *model, "--json")
    assert (code, err) == (0, "")
    assert [(c["shape"], c["tokens"]) for c in json.loads(text)["cells"]] == [("tiny-dsv3", 1), ("tiny-dsv3", 16)]


def test_tune_writes_where_the_kernels_look(run: Run, on_stand: Stand, clock: Clock, model: tuple[object, ...]) -> None:
    clock.price = lambda kernel: {"t24": 3.0}.get(kernel, 9.0)
    code, text, err = run("tune", "gemm", *model)
    path = settings.tuned_table("a Hopper")
    assert code == 0 and f"wrote {path}: 14 problems measured" in text, err
    table = json.loads(path.read_text())
    assert table["schedules"]["16 512 256"] == [[4, "t24", 0], [64, "t24", 0]]
    code, text, _ = run("tune", "moe", *model, "--json", "-o", path)
    found = json.loads(text)
    assert code == 0 and [f["problem"] for f in found["found"]][:2] == ["tiny-dsv3.gate_up", "tiny-dsv3.down"]
    assert len(json.loads(path.read_text())["schedules"]) == len(table["schedules"])
    (way,) = json.loads(path.read_text())["layers"].values()
    assert [f["schedule"] for f in found["found"] if f["problem"] == "tiny-dsv3"] == [kernel for _, kernel in way]


def test_a_table_that_the_environment_names_is_made_and_begun_afresh(
    run: Run, on_stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W4AFP8_TUNED", str(tmp_path / "mine.json"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: ABOUT["device"])
    one = ("tune", "gemm", "--shape", "DENSE", "--tp", "8", "--tokens")
    monkeypatch.setattr(shapes, "NAMED", {"DENSE": Shape("DENSE", None, (Gemm("d.q", 1024, 256),))})
    assert run(*one, "1")[0] == run(*one, "16")[0] == 0
    assert len(json.loads((tmp_path / "mine.json").read_text())["schedules"]["1 128 256"]) == 2
    assert "1 problems measured, 1 in all" in run(*one, "64", "--fresh")[1]
    assert tuned.lookup(1, 128, 256, 64) is not None and tuned.lookup(1, 128, 256, 1) is None


def test_a_wrong_row_is_said(run: Run, on_stand: Stand, clock: Clock, model: tuple[object, ...]) -> None:
    clock.spoils = lambda row, out: out.mul_(2) if row.kernel == "t8" else None
    code, text, _ = run("tune", "gemm", *model)
    assert code == 0 and "wrong: tiny-dsv3.gate_up M=1 t8/0: an error of 1; dropped" in text


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("bench", "gemm", "--shape", "R1"), 4, "bench gemm: found no CUDA device"),
        (("tune", "moe", "--shape", "tp8"), 4, "tune moe: found no CUDA device"),
        (("bench", "gemm"), 2, "give --model CONFIG or --shape"),
        (("bench", "gemm", "--shape", "TP9"), 2, "did you mean 'TP8'"),
        (("bench", "moe", "--shape", "R1", "--tokens", "1,x"), 2, "--tokens: found '1,x'"),
        (("tune", "gemm", "--shape", "R1", "--tp", "3"), 2, "is 2048, no multiple of 3"),
        (("bench", "gemm", "--shape", "R1", "--plot", "x.jpg"), 4, "expected a file name that ends in .png"),
        (("bench", "gemm", "--from", "none.jsonl", "--shape", "R1"), 2, "--from shows what was measured"),
        (("bench", "gemm", "--from", "none.jsonl", "--tp", "8"), 2, "it takes no --model, --shape, --tp"),
        (("bench", "gemm", "--from", "none.jsonl", "--ep", "8"), 2, "it takes no --model, --shape, --tp"),
        (("bench", "moe", "--from", "none.jsonl", "--way", "n8"), 2, "it takes no --model, --shape, --tp"),
        (("bench", "gemm", "--from", "none.jsonl"), 2, "no such file"),
        (("bench", "moe", "--shape", "DENSE"), 2, "DENSE: found dense projections only, expected a layer"),
        (("tune", "moe", "--shape", "DENSE"), 2, "DENSE: found dense projections only, expected a layer"),
        (("bench", "gemm", "--shape", "R1", "--plot", "no/x.png"), 4, "there is no folder no"),
        (("bench", "gemm", "--shape", "R1", "--out", "no/x.jsonl"), 2, "there is no folder no"),
        (("bench", "moe", "--shape", "R1", "--way", "n9"), 2, "n9: expected one of chosen, several, n8f, n8, n16"),
        (("bench", "gemm", "--shape", "R1", "--way", "n8"), 2, "bench gemm runs no layer"),
        (("bench", "layer"), 2, "'layer' is not one of"),
    ],
)
def test_refusals(run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, says: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found, _, err = run(*words)
    assert (found, says in err) == (code, True), err


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\xff\xfe",
        b'{"record": "machine", "fp8_flop_us": 1e9}\n',
        b'{"record": "machine", "fp8_flop_us": 0, "read_16MiB_us": 5}\n',
        b'{"record": "machine", "fp8_flop_us": 1e9, "read_16MiB_us": 5}\n{"record": "gemm"}\n',
        b"[]\n",
    ],
    ids=["a picture", "no reads", "no rate", "half a cell", "a list"],
)
def test_what_is_no_record_is_refused(run: Run, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(content)
    code, _, err = run("bench", "gemm", "--from", file)
    assert code == 2 and "w4afp8 bench --out" in err.replace("\n", " ")


def test_a_full_gpu_is_no_traceback(run: Run, on_stand: Stand, clock: Clock, model: tuple[object, ...]) -> None:
    def full(kernel: str) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    clock.price = full
    code, _, err = run("bench", "gemm", *model)
    assert code == 4 and err == (
        "error: CUDA out of memory. Tried to allocate 2 GiB; free the GPU of other programs, or ask for less\n"
    )

    def broken(kernel: str) -> float:
        raise RuntimeError("another")

    clock.price = broken
    with pytest.raises(RuntimeError, match="another"):
        run("bench", "gemm", *model)


def test_a_time_of_zero_is_no_measurement(run: Run, on_stand: Stand, model: tuple[object, ...], tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    run("bench", "gemm", *model, "--out", file)
    file.write_text(re.sub(r'"us": [0-9.]+', '"us": 0', file.read_text()))
    code, _, err = run("bench", "gemm", "--from", file)
    assert code == 2 and "line 2 is no record" in err and "not above zero" in err


@pytest.mark.parametrize(
    ("script", "words", "asked"),
    [
        ("bench_grouped_gemm", ["--shapes", "R1,DENSE", "--tokens", "1"], "bench gemm"),
        ("bench_grouped_gemm", ["--sweep", "--shapes", "TP8"], "tune gemm"),
        ("bench_kernel_layer", ["--shapes", "R1"], "bench moe"),
    ],
)
def test_the_scripts_are_these_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, words: list[str], asked: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [script, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / "benchmarks" / f"{script}.py"), run_name="__main__")
    assert left.value.code == 4 and f"{asked}: found no CUDA device" in capsys.readouterr().err


def test_recorded_peers_stand_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    from w4afp8.measure.cells import Cell, Run

    cell: Any = Cell("moe", "R1", 64, 512.0, 220.0, 1e9, 1e9, 1.0, "bytes", 1.0, 703.0, 1.0, "t8/0 t8/0")
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "bench_kernel_layer.py"))
    script["beside_recorded"](Run(ABOUT, MACHINE, (cell,)))
    assert "R1 M=64: humming 1406 us, ratio 2.00" in capsys.readouterr().out


def test_a_recorded_run_is_shown_without_a_gpu(run: Run, tmp_path: Path) -> None:
    """What `--out` wrote on an H200 stays readable."""
    recorded = REPOSITORY / "benchmarks" / "results" / "bench-tp8-h200.jsonl"
    code, text, err = run("bench", "gemm", "--from", recorded)
    assert code == 0 and "geometric mean 1.06, faster in 2 of 6 cells" in text, err
    code, text, err = run("bench", "moe", "--from", recorded, "--plot", tmp_path / "roof.png")
    assert code == 0, err
    assert "NVIDIA H200, driver 580.159.04" in text and "humming us" in text and "faster in 2 of 3 cells" in text
