"""Commands that succeed, from their words to what stands on disk and on the terminal; Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import FEW, Outcome

Toy = Callable[..., Path]


def test_a_dry_run_plans_and_writes_nothing(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    code, text, _ = w4afp8("quantize", "--model", source, "-o", out, "--dry-run", *FEW)
    assert code == 0
    for word in ("routed expert", "activation scale", "disk", "memory", "time", "calibration"):
        assert word in text
    code, text, _ = w4afp8("quantize", "--model", source, "-o", out, "--dry-run", "--json", *FEW)
    plan = json.loads(text)
    assert code == 0 and plan
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_from_the_command_line(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    code, text, err = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert (code, err) == (0, "")
    assert f"next: w4afp8 validate {out} --against {source}" in text
    assert sum(line.startswith("layer ") and "s" in line for line in text.splitlines()) >= 4
    assert "\x1b" not in text, "no colours where there is no terminal"
    code, _, err = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert code == 2 and "holds a finished checkpoint" in err
    found = json.loads(w4afp8("inspect", out, "--json")[1])
    experts = next(line for line in found["roles"] if line["role"] == "routed expert")
    assert (experts["format"], experts["count"]) == ("sglang_w4afp8", 36)
    assert "tensors" not in found
    assert len(json.loads(w4afp8("inspect", out, "--tensors", "--json")[1])["tensors"]) > 100
    code, text, _ = w4afp8("inspect", out)
    assert code == 0 and "sglang_w4afp8" in text


def test_quiet_and_json_say_nothing_else(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    source = toy()
    assert w4afp8("quantize", "--model", source, "-o", tmp_path / "a", "-q", *FEW) == (0, "", "")
    code, text, err = w4afp8("quantize", "--model", source, "-o", tmp_path / "b", "--json", *FEW)
    report = json.loads(text)
    assert (code, err) == (0, "") and report["bits_per_weight"] == 4.25 and len(report["layers"]) == 3


def test_the_default_output_is_named_after_the_model(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy("DeepSeek-R1")
    monkeypatch.chdir(tmp_path)
    assert w4afp8("quantize", "--model", "DeepSeek-R1", "-q", *FEW)[0] == 0
    assert (tmp_path / "DeepSeek-R1-W4AFP8" / "config.json").is_file()
    monkeypatch.chdir(tmp_path / "DeepSeek-R1")
    assert w4afp8("quantize", "--model", "../DeepSeek-R1/", "--dry-run", "-q", *FEW)[0] == 0


def interrupt(monkeypatch: pytest.MonkeyPatch, on: str, times: int) -> None:
    """Ctrl-C, `times` times, at the first event of that kind."""
    from w4afp8.terminal.progress import RunProgress

    show, left = RunProgress.__call__, [times]

    def call(self: RunProgress, event: dict[str, Any]) -> None:
        show(self, event)
        if event["event"] == on and event.get("unit", "").startswith("layer-001"):
            while left[0]:
                left[0] -= 1
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunProgress, "__call__", call)


def test_ctrl_c_once_finishes_the_layer(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = toy(), tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt(patched, "progress", 1)
        code, _, err = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert code == 75
    assert "stopping after this layer" in err and "run the same command to go on" in err
    done = sorted(p.name for p in (out / "w4afp8" / "state").glob("*.done.json"))
    assert done == ["layer-000.done.json", "layer-001.done.json", "outside.done.json"]
    assert not (out / "config.json").exists()
    code, text, _ = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert code == 0 and "resume" in text


def test_ctrl_c_twice_stops_at_once(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = toy(), tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt(patched, "progress", 2)
        code, _, err = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert code == 130 and "what was finished is kept" in err
    assert not (out / "w4afp8" / "state" / "layer-001.done.json").exists()
    assert w4afp8("quantize", "--model", source, "-o", out, "-q", *FEW)[0] == 0
    assert w4afp8("quantize", "--model", source, "-o", tmp_path / "whole", "-q", *FEW)[0] == 0
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()


def test_signals_are_left_as_they_were(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    w4afp8("quantize", "--model", toy(), "-o", tmp_path / "out", "-q", *FEW)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_names_with_brackets_are_printed_not_interpreted(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path
) -> None:
    source = toy("odd [bold] [/x] name")
    code, text, err = w4afp8("quantize", "--model", source, "-o", tmp_path / "out [red]", *FEW)
    assert code == 0, err
    assert str(source) in text
    assert w4afp8("inspect", source)[0] == 0
    code, _, err = w4afp8("inspect", tmp_path / "no [/such] [b]")
    assert code == 2 and "no [/such] [b]" in err


def test_what_show_prints_is_a_recipe(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(w4afp8("recipes", "show", "rtn")[1])
    arguments = ("quantize", "--model", toy(), "-q", *FEW[:-2])
    assert w4afp8(*arguments, "--recipe", path, "-o", tmp_path / "a")[0] == 0
    assert w4afp8(*arguments, "--recipe", "rtn", "-o", tmp_path / "b")[0] == 0
    for file in (tmp_path / "a").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_bf16_config_with_an_explicit_null_is_inspected(w4afp8: Callable[..., Outcome], toy: Toy) -> None:
    source = toy(dtype="bf16")
    config = json.loads((source / "config.json").read_text())
    for value in (None, [], "fp8"):
        (source / "config.json").write_text(json.dumps(config | {"quantization_config": value}))
        code, text, err = w4afp8("inspect", source, "--json")
        assert code == 0, err
        assert json.loads(text)["experts"] == 4


def test_eval_speaks_json(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    source, out, data = toy(), tmp_path / "out", tmp_path / "text.txt"
    data.write_text("It was the best of times, it was the worst of times. " * 200)
    assert w4afp8("quantize", "--model", source, "-o", out, "-q", *FEW)[0] == 0
    few = ("--against", source, "--data", data, "--sequences", 2, "--sequence", 32)
    code, text, err = w4afp8("eval", out, *few, "--json")
    assert code == 0, err
    assert json.loads(text)
    code, text, err = w4afp8("eval", out, *few)
    assert code == 0 and "KL" in text.upper(), err
