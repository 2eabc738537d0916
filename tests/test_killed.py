"""Killed at any moment, run again, byte-identical: tried between any two things a run does to the disk."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from children import FINISHED, REFUSED, Countdown, die, in_child, wait
from outputs import FOLDS_ALONE, run, tree
from w4afp8.recipes._recipe import Resume

RANDOM_KILLS, STEP_KILLS, EVENT_KILLS = 12, 26, 6


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
        {"method": {"name": "awq", "options": FOLDS_ALONE | {"min_gain": 0}}, "output": {"shard_gb": 0.0002},
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
    layers = json.loads(expected["w4afp8/record.json"])["layers"]
    assert all(layer["folded"] for layer in layers), "norms that a layer changes, and the next begins from unchanged"
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
