"""Killed at any moment, run again, byte-identical: tried between any two things a run does to the disk."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from w4afp8 import _version, pipeline
from w4afp8.errors import CalibrationError, ResumeError, Stopped, W4AFP8Error
from w4afp8.recipes._recipe import Recipe, Resume

Toy = Callable[..., Path]
Small = Callable[..., Recipe]
REFUSED = 18  # and for any other ResumeError
FINISHED = 17  # a child's exit code for "this output is finished already"
# What a run does to the disk.  A child counts them and kills itself before the n-th.
STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open", "pwrite")
RANDOM_KILLS, STEP_KILLS, EVENT_KILLS = 12, 26, 6


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.jsonl"
    }


def run(source: Path, recipe: Recipe, out: Path, **more: Any) -> dict[str, Any]:
    return pipeline.run(pipeline.prepare(source, recipe, out), **more)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Countdown:
    """Kills its process before the n-th step on the disk; counts them when n is None."""

    def __init__(self, kill_before: int | None) -> None:
        self.seen, self.kill_before = 0, kill_before

    def install(self) -> None:
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            writes = function.__name__ != "open" or (len(arguments) > 1 and arguments[1] & os.O_CREAT)
            if writes:
                if self.seen == self.kill_before:
                    die()
                self.seen += 1
            return function(*arguments, **named)

        return counted


def in_child(work: Callable[[], int]) -> int:
    """Fork, so that torch is imported once; the child's wait status."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # renews the thread pool that the fork left behind
            code = work()
        except ResumeError as error:
            code = FINISHED if "holds a finished checkpoint" in str(error) else REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, miniature: Path, miniature_config: dict[str, Any]) -> Iterator[Any]:
    """A source, a recipe, and what an uninterrupted run makes of them."""
    from w4afp8.recipes._load import build
    from w4afp8.synthetic import write_checkpoint

    folder = tmp_path_factory.mktemp("resume")
    config = miniature_config | {
        "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 2, "num_experts_per_tok": 1,
        "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8, "qk_head_dim": 24,
    }  # fmt: skip
    write_checkpoint(folder / "source", config, shard_gb=0.0005, tokenizer_from=miniature)
    recipe = build(
        {"method": {"name": "awq", "options": {"rounds": 1, "sweeps": 1}}, "output": {"shard_gb": 0.0002},
         "calibration": {"tokens": 128, "sequence": 32}, "coverage": {"min_tokens": 0}}, "x")  # fmt: skip

    def work(
        out: Path,
        countdown: int | None = None,
        listener: Callable[[dict[str, Any]], None] = lambda e: None,
        resume: Resume = Resume.AUTO,
    ) -> int:
        counter = Countdown(countdown)
        counter.install()
        run(folder / "source", recipe, out, listener=listener, resume=resume)
        (folder / "steps").write_text(str(counter.seen))
        return 0

    began = time.monotonic()
    assert wait(in_child(lambda: work(folder / "whole"))) == 0
    seconds = time.monotonic() - began
    expected = tree(folder / "whole")
    assert "config.json" in expected
    yield work, expected, int((folder / "steps").read_text()), seconds


def finish_and_compare(work: Any, out: Path, expected: dict[str, bytes], where: str) -> None:
    if (out / "config.json").exists():
        missing = set(expected) - set(tree(out)) - {"config.json"}
        assert not missing, f"{where}: config.json stands there although {missing} do not"
    code = wait(in_child(lambda: work(out)))
    assert code in (0, FINISHED), f"{where}: the second run ended with {code}"
    found = tree(out)
    assert found.keys() == expected.keys(), f"{where}: {sorted(found.keys() ^ expected.keys())}"
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, f"{where}: {different}"


def test_killed_between_any_two_steps_on_the_disk(trial: Any, tmp_path: Path) -> None:
    work, expected, steps, _ = trial
    assert steps > 100
    chosen = sorted({*random.Random(1).sample(range(steps), STEP_KILLS), *range(steps - 10, steps)})
    for step in chosen:
        out = tmp_path / f"step-{step}"
        assert wait(in_child(lambda out=out, step=step: work(out, step))) == -signal.SIGKILL
        finish_and_compare(work, out, expected, f"killed before step {step} of {steps}")


def test_killed_at_random_times(trial: Any, tmp_path: Path) -> None:
    work, expected, _, seconds = trial
    for number in range(RANDOM_KILLS):
        out = tmp_path / f"time-{number}"
        child = in_child(lambda out=out: work(out))
        time.sleep(seconds * (number + 0.5) / RANDOM_KILLS)
        os.kill(child, signal.SIGKILL)
        assert wait(child) in (-signal.SIGKILL, 0)
        finish_and_compare(work, out, expected, f"killed at {(number + 0.5) / RANDOM_KILLS:.2f} of the run")


def test_killed_right_after_every_event_of_one_run(trial: Any, tmp_path: Path) -> None:
    """The same output, killed again and again: each attempt must bring it further."""
    work, expected, _, _ = trial
    out = tmp_path / "out"

    def kill_after_a_unit(event: dict[str, Any]) -> None:
        if event["event"] == "unit":
            die()

    codes = [wait(in_child(lambda: work(out, None, kill_after_a_unit))) for _ in range(EVENT_KILLS)]
    assert codes == [-signal.SIGKILL] * 5 + [0]  # what stands outside, three layers, the MTP layer
    assert tree(out) == expected


def test_the_children_of_this_test_do_fail_when_bytes_differ(trial: Any, tmp_path: Path) -> None:
    work, expected, _, _ = trial
    out = tmp_path / "out"
    assert wait(in_child(lambda: work(out))) == 0
    (out / "config.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"config.json"):
        finish_and_compare(work, out, expected, "x")


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
    events: list[str] = []
    run(source, small_recipe("awq"), out, resume=Resume.NEVER, listener=lambda e: events.append(e["event"]))
    assert "start" in events and "resume" not in events
    run(source, small_recipe("awq"), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("step", [0, 3, 6])
def test_an_output_killed_while_publishing_can_be_begun_anew(trial: Any, tmp_path: Path, step: int) -> None:
    """Side files and config stand there already; --resume never must clear them, not call them a stranger's."""
    work, expected, steps, _ = trial
    out = tmp_path / "out"
    assert wait(in_child(lambda: work(out, steps - 20 - 6 * step))) == -signal.SIGKILL
    assert wait(in_child(lambda: work(out, resume=Resume.NEVER))) == 0
    assert tree(out) == expected


@pytest.mark.parametrize("step", range(0, 40, 5))
def test_killed_while_it_clears_an_output_it_can_be_cleared_again(trial: Any, tmp_path: Path, step: int) -> None:
    """And until then a run that would go on is refused, or still goes on to the right bytes."""
    work, expected, steps, _ = trial
    out = tmp_path / "out"
    assert wait(in_child(lambda: work(out, steps - 30))) == -signal.SIGKILL
    assert wait(in_child(lambda: work(out, step, resume=Resume.NEVER))) == -signal.SIGKILL
    code = wait(in_child(lambda: work(out)))
    if code == 0:
        assert tree(out) == expected
        return
    assert code == REFUSED
    assert wait(in_child(lambda: work(out, resume=Resume.NEVER))) == 0
    assert tree(out) == expected


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
