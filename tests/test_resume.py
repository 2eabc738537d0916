"""Stopped, run again: it goes on with the same command, and is refused where anything that decides bytes changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outputs import FOLDS_ALONE, run, tree
from w4afp8 import _version
from w4afp8.errors import CalibrationError, ResumeError, Stopped, W4AFP8Error
from w4afp8.recipes._recipe import Recipe, Resume

Toy = Callable[..., Path]
Small = Callable[..., Recipe]


class StopAfter:
    """Says stop after n finished units."""

    def __init__(self, units: int) -> None:
        self.left = units

    def listen(self, event: dict[str, Any]) -> None:
        self.left -= event["event"] == "unit"

    def __call__(self) -> bool:
        return self.left <= 0


def stopped(source: Path, recipe: Recipe, out: Path, units: int = 3) -> None:
    stop = StopAfter(units)
    with pytest.raises(Stopped, match="run the same command to go on") as caught:
        run(source, recipe, out, listener=stop.listen, stop=stop)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("units", [1, 2, 4])
def test_a_stopped_run_keeps_whole_layers_and_goes_on(
    toy: Toy, small_recipe: Small, tmp_path: Path, units: int
) -> None:
    source, out = toy(), tmp_path / "out"
    run(source, small_recipe(), tmp_path / "whole")
    stopped(source, small_recipe(), out, units)
    assert not (out / "config.json").exists() and not (out / "model.safetensors.index.json").exists()
    assert len(list((out / "w4afp8" / "state").glob("*.done.json"))) == units
    assert len(list((out / "w4afp8" / "state").glob("*.states"))) == (units > 1), "the states of one layer, not of all"
    events: list[dict[str, Any]] = []
    run(source, small_recipe(), out, listener=events.append, resume=Resume.REQUIRED)
    assert [e["unit"] for e in events if e["event"] == "unit"] == [
        "outside", "layer-000", "layer-001", "layer-002", "layer-003",
    ][units:]  # fmt: skip
    assert "resume" in [e["event"] for e in events] and "covered" not in [e["event"] for e in events]
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("unit", ["source values", "calibration coverage"])
def test_a_run_stopped_in_its_survey_stops_there(toy: Toy, small_recipe: Small, tmp_path: Path, unit: str) -> None:
    seen: list[str] = []
    with pytest.raises(Stopped, match="while the source was surveyed") as caught:
        run(toy(), small_recipe(), tmp_path / "out", listener=lambda e: seen.append(e.get("unit", "")),
            stop=lambda: unit in seen)  # fmt: skip
    assert caught.value.exit_code == 75
    assert seen.count(unit) < 50, "one piece of each shard at most, of some 180 tensors"
    assert not (tmp_path / "out").exists()


def test_a_changed_recipe_is_refused_with_the_difference(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    before = tree(out)
    for recipe, says in (
        (small_recipe(activations={"headroom": 3.0}), r"recipe\.activations\.headroom: was 2\.0, is 3\.0"),
        (small_recipe("awq"), r"recipe\.method\.name: was rtn, is awq"),
        (small_recipe(output={"shard_gb": 1.0}), r"recipe\.output\.shard_gb"),
        (small_recipe(mtp="drop"), r"recipe\.mtp: was auto, is drop"),
    ):
        with pytest.raises(ResumeError, match=says) as caught:
            run(source, recipe, out)
        assert caught.value.exit_code == 2
    assert tree(out) == before


def test_changed_calibration_data_is_refused(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out, text = toy(), tmp_path / "out", tmp_path / "text.txt"
    text.write_text("".join(f"{i} is a number, and {i * i} is its square. " for i in range(3000)))
    recipe = small_recipe(calibration={"tokens": 256, "sequence": 64, "data": [str(text)]})
    stopped(source, recipe, out)
    text.write_text(text.read_text().replace("square", "circle"))
    with pytest.raises(ResumeError, match=r"calibration\.sha256: was \w+, is \w+"):
        run(source, recipe, out)


def test_a_changed_source_is_refused(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(shard_gb=1.0), tmp_path / "out"
    stopped(source, small_recipe(), out)
    shard = next(source.glob("*.safetensors"))
    tensors = load_file(shard)
    tensors["model.norm.weight"] = (tensors["model.norm.weight"].float() * 2).bfloat16()
    save_file(tensors, shard)
    with pytest.raises(ResumeError, match=rf"source\.shards\.{shard.name}\.(bytes|mtime_ns|sha256): was"):
        run(source, small_recipe(), out)


def test_a_changed_config_is_refused(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"routed_scaling_factor": 1.5}))
    with pytest.raises(ResumeError, match=r"source\.config\.routed_scaling_factor: was 2\.5, is 1\.5"):
        run(source, small_recipe(), out)


def test_a_source_that_was_only_touched_is_the_same_source(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    """A copy, a mount, a restore: other times, the same bytes."""
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    for path in source.iterdir():
        os.utime(path, (1, 1))
    run(source, small_recipe(), out, resume=Resume.REQUIRED)


@pytest.mark.parametrize("what", ["version", "torch", "threads"])
def test_another_version_is_refused(
    toy: Toy, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    if what == "version":
        monkeypatch.setattr(_version, "__version__", "9.9.9")
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with pytest.raises(ResumeError, match=r"tool\.\w+: was .*, is (9\.9\.9|99)"):
        run(source, small_recipe(), out)


def test_what_changes_no_byte_may_change(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    run(source, small_recipe(about="other words", coverage={"min_tokens": 0}, compute={"survey": "values"}), out)


def test_never_begins_anew_and_required_never_does(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    with pytest.raises(ResumeError, match="holds no unfinished run to resume"):
        run(source, small_recipe(), out, resume=Resume.REQUIRED)
    assert not out.exists()
    stopped(source, small_recipe(), out)
    events, other = [], small_recipe("awq", FOLDS_ALONE)
    run(source, other, out, resume=Resume.NEVER, listener=lambda e: events.append(e["event"]))
    assert "start" in events and "resume" not in events
    run(source, other, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_lost_shards_of_an_unfinished_run_are_noticed(toy: Toy, small_recipe: Small, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    shards = sorted(out.glob("model-*.safetensors"))
    shards[0].unlink()
    os.truncate(shards[1], 100)
    with pytest.raises(ResumeError, match="lost what it had finished") as caught:
        run(source, small_recipe(), out)
    assert shards[0].name in str(caught.value) and shards[1].name in str(caught.value)
    run(source, small_recipe(), out, resume=Resume.NEVER)


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_journal_is_named(toy: Toy, small_recipe: Small, tmp_path: Path, damage: str) -> None:
    source, out = toy(), tmp_path / "out"
    stopped(source, small_recipe(), out)
    (out / "w4afp8" / "state" / "fingerprint.json").write_text(damage)
    with pytest.raises(W4AFP8Error, match=r"fingerprint\.json"):
        run(source, small_recipe(), out)


def test_a_cold_expert_found_on_the_way_is_no_reason_to_lose_layers(
    toy: Toy, small_recipe: Small, tmp_path: Path
) -> None:
    """Coverage is judged before the first byte; a stricter judgement later does not undo an unfinished run."""
    source, out = toy(), tmp_path / "out"
    with pytest.raises(CalibrationError):
        run(source, small_recipe(coverage={"min_tokens": 10_000}), out)
    assert not out.exists()
