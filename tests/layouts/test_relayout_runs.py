"""Laying out and restoring are stopped, killed, begun anew and spread over threads: the bytes are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from relayouts import Make, back, files, into, stops_after

from children import FINISHED, Countdown, in_child, wait
from outputs import tree
from w4afp8 import conversion
from w4afp8.checkpoint.journal import Journal
from w4afp8.errors import (
    CheckpointError,
    RecipeError,
    ResumeError,
    Stopped,
)
from w4afp8.layouts._record import Record
from w4afp8.recipes._recipe import Resume
from w4afp8.validate import validate


def test_a_stopped_run_goes_on_to_the_same_bytes(int4: Make, tmp_path: Path) -> None:
    source, whole, cut = int4(), tmp_path / "whole", tmp_path / "parts"
    into(source, "machete-lyra", whole, ep=2)
    for _ in range(2):
        with pytest.raises(Stopped, match="stopped before layer-"):
            into(source, "machete-lyra", cut, ep=2, stop=stops_after(2))
        assert not (cut / "config.json").exists()
    with pytest.raises(ResumeError, match="made from something else"):
        into(source, "machete-lyra", cut)
    into(source, "machete-lyra", cut, ep=2, resume=Resume.REQUIRED)
    assert files(cut) == files(whole)
    with pytest.raises(Stopped, match="stopped before model-"):
        back(cut, tmp_path / "again", stop=stops_after(2))
    back(cut, tmp_path / "again")
    assert files(tmp_path / "again") == files(source)


def test_never_resuming_begins_anew(int4: Make, tmp_path: Path) -> None:
    source, out = int4(), tmp_path / "out"
    with pytest.raises(Stopped):
        into(source, "marlin", out, stop=stops_after(2))
    into(source, "sm90", out, ep=2, resume=Resume.NEVER)
    assert validate(out).passed
    with pytest.raises(Stopped):
        back(out, tmp_path / "again", stop=stops_after(2))
    back(out, tmp_path / "again", resume=Resume.NEVER)
    assert files(tmp_path / "again") == files(source)


def test_never_resuming_also_forgets_a_run_that_was_cut_among_its_last_files(
    int4: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = int4(num_hidden_layers=2), tmp_path / "out"
    (source / "tokenizer.json").write_text("{}")

    def full(record: Record, folder: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(Record, "write", full)
        into(source, "marlin", out)
    assert (out / "tokenizer.json").is_file()
    into(source, "sm90", out, resume=Resume.NEVER)
    assert validate(out).passed


@pytest.mark.parametrize("way", ["into", "back", "format"])
def test_never_resuming_does_not_forget_the_source(int4: Make, tmp_path: Path, way: str) -> None:
    """A run that is killed in its last moment leaves a whole checkpoint and its journal."""
    source = int4(num_hidden_layers=2)
    if way == "back":
        into(source, "sm90", tmp_path / "laid")
        source = tmp_path / "laid"
    Journal(source / "w4afp8" / "state").open({"tool": "killed"})
    before = files(source)
    with pytest.raises(CheckpointError, match="is the source itself"):
        if way == "into":
            into(source, "sm90", source, resume=Resume.NEVER)
        elif way == "back":
            back(source, source, resume=Resume.NEVER)
        else:
            prepared = conversion.prepare(source, "compressed_tensors_w4a8", source, 1.0)
            conversion.run(prepared, resume=Resume.NEVER)
    assert files(source) == before


def test_the_bytes_do_not_depend_on_the_jobs(int4: Make, gpt_oss: Path, tmp_path: Path) -> None:
    """Of experts with tensors of their own, and of stacked ones, whose parts are digested in order."""
    for source in (int4(num_hidden_layers=2), gpt_oss):
        out = tmp_path / f"{source.name}-laid"
        into(source, "marlin", out, ep=2)
        for jobs in (1, 5):
            back(out, tmp_path / f"{source.name}-{jobs}", jobs)
            assert files(tmp_path / f"{source.name}-{jobs}") == files(source)
    with pytest.raises(RecipeError, match="--jobs is 0"):
        back(out, tmp_path / "none", 0)


@pytest.mark.parametrize("direction", ["into", "back"])
def test_killed_between_any_two_steps_on_the_disk(int4: Make, tmp_path: Path, direction: str) -> None:
    source = int4(num_hidden_layers=2)
    into(source, "machete-lyra", tmp_path / "laid", ep=2)

    def work(out: Path, countdown: int | None = None) -> int:
        counter = Countdown(countdown)
        counter.install()
        if direction == "into":
            into(source, "machete-lyra", out, ep=2)
        else:
            back(tmp_path / "laid", out)
        (tmp_path / "steps").write_text(str(counter.seen))
        return 0

    assert wait(in_child(lambda: work(tmp_path / "whole"))) == 0
    steps, expected = int((tmp_path / "steps").read_text()), tree(tmp_path / "whole")
    for number in range(10):
        out, step = tmp_path / f"killed-{number}", number * steps // 10
        assert wait(in_child(lambda out=out, step=step: work(out, step))) == -9
        code = wait(in_child(lambda out=out: work(out)))
        assert code in (0, FINISHED), (step, code)
        assert tree(out) == expected, step
