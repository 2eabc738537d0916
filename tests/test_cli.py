"""The command line: every option on purpose, an exit code per kind of failure, JSON that is JSON.

tests/golden/cli.txt is what `python tests/test_cli.py` writes; an option that changes, changes it on purpose.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import load_file, save_file

from w4afp8 import __version__, errors, recipes
from w4afp8.cli import cli, code_of

Toy = Callable[..., Path]
Outcome = tuple[int, str, str]
REPOSITORY = Path(__file__).parent.parent
FEW = ("--set", "calibration.tokens=128", "--set", "calibration.sequence=32", "--set", "output.shard_gb=0.0002",
       "--recipe", "rtn")  # fmt: skip


def describe(command: click.Command, path: str) -> Iterator[str]:
    """Every command with what it takes, from click's own objects: the same text whatever click's layout is."""
    yield f"{path}: {' '.join((command.help or '').split())}"
    for parameter in command.params:
        spelled = ", ".join((*parameter.opts, *parameter.secondary_opts))
        kind = parameter.type
        choices = f" {{{'|'.join(map(str, kind.choices))}}}" if isinstance(kind, click.Choice) else ""
        flag = isinstance(parameter, click.Option) and parameter.is_flag
        words = [spelled + choices + ("" if flag or choices else f" {kind.name.upper()}")]
        words += ["required"] if parameter.required else []
        words += ["repeatable"] if parameter.multiple or parameter.nargs == -1 else []
        if isinstance(parameter, click.Option):
            words += [f"default {parameter.default!r}"] if parameter.show_default else []
            words += [parameter.help or ""]
        yield "    " + "; ".join(filter(None, words))
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield ""
            yield from describe(inner, f"{path} {name}")


@pytest.fixture
def w4afp8(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command: (exit code, standard output, standard error)."""

    def invoke(*arguments: object) -> Outcome:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        code = code_of(lambda: cli.main(args=words, prog_name="w4afp8", standalone_mode=False))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return invoke


def test_every_option_is_there_on_purpose(golden: Path) -> None:
    found = "\n".join(describe(cli, "w4afp8")) + "\n"
    assert found == (golden / "cli.txt").read_text(), (
        "the command line changed; if you meant it: python tests/test_cli.py"
    )


def test_every_command_helps(w4afp8: Callable[..., Outcome]) -> None:
    commands = ((name,) for name in cli.commands)
    for words in ((), *commands, ("recipes", "show")):
        code, out, _ = w4afp8(*words, "--help")
        assert code == 0 and "Usage: w4afp8" in out
        assert w4afp8(*words, "-h")[1] == out
    assert w4afp8("--version")[1].strip().endswith(__version__)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


def test_every_command_speaks_json() -> None:
    """That what it prints then is one JSON document is tested where the command is."""
    for path, command in leaves(cli):
        assert any("--json" in parameter.opts for parameter in command.params), " ".join(path)


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    table = (REPOSITORY / "docs" / "exit-codes.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.W4AFP8Error)]
    real = {kind.exit_code for kind in kinds if kind is not errors.W4AFP8Error}
    assert documented == real | {0, 130}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["quantise"], 2, "Did you mean 'quantize'?"),
        (["recipes", "shwo"], 2, "Did you mean 'show'?"),
        (["quantize", "--modle", "x"], 2, "Did you mean one of: '--model'"),
        (["convert", "{toy}", "--format", "sglang_w4afp"], 2, "did you mean 'sglang_w4afp8'?"),
        (["quantize"], 2, "Missing option '--model'"),
        (["quantize", "--model", "x", "--nope"], 2, "No such option"),
        (["quantize", "--model", "./nowhere"], 2, "no such directory"),
        (["quantize", "--model", "nowhere"], 2, "no such directory, and no Hub id"),
        (["quantize", "--model", "{toy}", "--mtp", "maybe"], 2, "'maybe' is not one of"),
        (["quantize", "--model", "{toy}", "--mtp", "native", *FEW], 2, "mtp: native"),
        (["quantize", "--model", "{toy}", "--recipe", "balence"], 2, "did you mean 'balanced'"),
        (["quantize", "--model", "{toy}", "--set", "calibration.tokns=3"], 2, "did you mean 'tokens'"),
        (["quantize", "--model", "{toy}", "--set", "method.name=gptqq"], 2, "unknown method"),
        (["quantize", "--model", "{toy}", "--set", "ignore=[nothing]", *FEW], 2, "matches none"),
        (["quantize", "--model", "{toy}", "--device", "nowhere", *FEW], 2, "compute.device"),
        (["quantize", "--model", "{toy}", "--data", "none.jsonl", *FEW], 2, "no such file or folder"),
        (["quantize", "--model", "{toy}", "-o", "{toy}", *FEW], 3, "is the source itself"),
        (["quantize", "--model", "{toy}", "--data", "{empty}", *FEW], 5, "holds no text; the file is empty"),
        (["quantize", "--model", "{toy}", "--set", "coverage.min_tokens=100000", *FEW], 5, "--allow-cold-experts"),
        (["quantize", "--model", "{toy}", "--resume", "required", *FEW], 2, "no unfinished run to resume"),
        (["inspect", "{nothing}"], 3, "config.json: not found"),
        (["inspect", "{cut}"], 3, "truncated"),
        (["inspect", "{odd}"], 3, "has no role"),
        (["quantize", "--model", "{sick}", *FEW], 6, "element 1 is NaN or infinite"),
        (["recipes", "show", "none"], 2, "no recipe 'none'"),
        (["eval", "{toy}", "--against", "{toy}", "--data", "{empty}"], 5, "empty.jsonl: holds 0 tokens"),
    ],
)
def test_each_kind_of_failure_has_its_code_and_writes_nothing(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], code: int, says: str,
) -> None:  # fmt: skip
    toy("toy", shard_gb=1.0)
    folders = {name: tmp_path / name for name in ("toy", "nothing", "cut", "odd", "sick")}
    folders["nothing"].mkdir()
    for name in ("cut", "odd", "sick"):
        shutil.copytree(folders["toy"], folders[name])
    shard = next(folders["toy"].glob("*.safetensors")).name
    os.truncate(folders["cut"] / shard, 100_000)
    tensors = load_file(folders["odd"] / shard)
    bad = {n: t.clone() for n, t in tensors.items()}
    bad["model.norm.weight"][1] = math.inf
    save_file(bad, folders["sick"] / shard)
    save_file(tensors | {"surprise": tensors["model.norm.weight"].clone()}, folders["odd"] / shard)
    index = json.loads((folders["odd"] / "model.safetensors.index.json").read_text())
    index["weight_map"]["surprise"] = shard
    (folders["odd"] / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    before = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    found, out, err = w4afp8(*(w.format(**folders, empty=tmp_path / "empty.jsonl") for w in words))
    assert (found, says in err) == (code, True), (found, out, err)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == before


def test_the_hubs_refusal_is_exit_8(w4afp8: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[Any, ...]] = []

    def offline(identifier: str, **named: Any) -> str:
        asked.append((identifier, named["revision"], named["repo_type"]))
        raise LocalEntryNotFoundError("no connection\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    code, _, err = w4afp8("quantize", "--model", "DeepSeek-R1", "--revision", "abc")
    assert code == 8 and "model deepseek-ai/DeepSeek-R1" in err and "no connection" in err and "long story" not in err
    assert w4afp8("inspect", "some/model")[0] == 8
    assert asked == [("deepseek-ai/DeepSeek-R1", "abc", "model"), ("some/model", None, "model")]


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


def test_a_dry_run_says_when_the_machine_is_too_small(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w4afp8.convert.resources.shutil.disk_usage", lambda path: type("D", (), {"free": 7})())
    for more in ((), ("--dry-run",)):
        code, _, err = w4afp8("quantize", "--model", toy(), "-o", tmp_path / "out", *FEW, *more)
        assert code == 4 and "has 7 B free" in err
    assert not (tmp_path / "out").exists()


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


def test_a_cold_expert_is_refused_or_accepted(w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path) -> None:
    source, out = toy(shard_gb=1.0), tmp_path / "out"
    shard = next(source.glob("*.safetensors"))
    tensors = load_file(shard)
    tensors["model.layers.1.mlp.gate.e_score_correction_bias"][2] = -50.0
    save_file(tensors, shard)
    code, _, err = w4afp8("quantize", "--model", source, "-o", out, *FEW)
    assert code == 5 and "layer 1: 1 of 4 experts saw fewer than 1 tokens: expert 2 saw 0" in err
    assert not out.exists()
    assert w4afp8("quantize", "--model", source, "-o", out, "-q", "--allow-cold-experts", *FEW)[0] == 0


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


def test_a_disk_that_fills_or_forbids_is_exit_4_without_a_traceback(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = toy()
    for error in (OSError(28, "No space left on device"), PermissionError(13, "Permission denied")):
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", lambda *a, error=error: (_ for _ in ()).throw(error))
            code, _, err = w4afp8("quantize", "--model", source, "-o", tmp_path / "out", *FEW)
        assert code == 4 and str(error.strerror) in err and "what was finished is kept" in err
    assert not (tmp_path / "out" / "config.json").exists()
    assert w4afp8("quantize", "--model", source, "-o", tmp_path / "out", "-q", *FEW)[0] == 0


def test_running_out_of_memory_is_exit_4(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("w4afp8.pipeline.prepare", none_left)
    code, _, err = w4afp8("quantize", "--model", toy(), "-o", tmp_path / "out")
    assert code == 4 and "out of memory" in err


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


def test_recipes_are_listed_and_shown(w4afp8: Callable[..., Outcome]) -> None:
    code, text, _ = w4afp8("recipes", "list")
    assert code == 0 and f"{recipes.DEFAULT} (default)" in text
    assert sorted(json.loads(w4afp8("recipes", "list", "--json")[1])) == sorted(recipes.names())
    for name in recipes.names():
        code, text, _ = w4afp8("recipes", "show", name)
        assert code == 0 and "version: 1" in text
        assert json.loads(w4afp8("recipes", "show", name, "--json")[1])["version"] == 1
    code, text, _ = w4afp8("recipes", "show", "rtn", "--set", "calibration.tokens=77")
    assert code == 0 and "tokens: 77" in text


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


def test_a_checkpoint_that_breaks_its_promise_is_exit_7(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path
) -> None:
    source, out = toy(), tmp_path / "out"
    assert w4afp8("quantize", "--model", source, "-o", out, "-q", *FEW)[0] == 0
    code, text, err = w4afp8("validate", out, "--against", source, "--json")
    assert code == 0, err
    assert json.loads(text)
    scales = load_file(out / "act_scales.safetensors")
    scales["model.layers.1.mlp.experts.0.w1.input_scale"].fill_(math.nan)
    save_file(scales, out / "act_scales.safetensors")
    code, text, err = w4afp8("validate", out, "--against", source, "--json", "--no-report")
    assert code == 7 and "the checkpoint is not what it promises" in err
    assert json.loads(text)
    assert w4afp8("validate", out, "--no-report")[0] == 7


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


if __name__ == "__main__":
    (Path(__file__).parent / "golden" / "cli.txt").write_text("\n".join(describe(cli, "w4afp8")) + "\n")
