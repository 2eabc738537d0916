"""A command that fails: its exit code, what it says, and nothing half-written."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from command_line import FEW, Outcome

Toy = Callable[..., Path]


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


def test_a_dry_run_says_when_the_machine_is_too_small(
    w4afp8: Callable[..., Outcome], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w4afp8.convert.resources.shutil.disk_usage", lambda path: type("D", (), {"free": 7})())
    for more in ((), ("--dry-run",)):
        code, _, err = w4afp8("quantize", "--model", toy(), "-o", tmp_path / "out", *FEW, *more)
        assert code == 4 and "has 7 B free" in err
    assert not (tmp_path / "out").exists()


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
