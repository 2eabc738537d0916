"""The ground floor: errors, the registry, events, and the record of an output."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest

from w4afp8 import errors, families, formats, quantize, registry
from w4afp8.events import EventLog


def test_every_error_has_an_exit_code_of_its_own_kind() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.W4AFP8Error)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.__doc__
        assert 1 <= kind.exit_code <= 75


def test_one_problem_is_a_sentence_and_more_are_a_list() -> None:
    errors.raise_all([], errors.RecipeError, "x")
    with pytest.raises(errors.RecipeError, match=r"^recipe: one$"):
        errors.raise_all(["one"], errors.RecipeError, "recipe")
    with pytest.raises(errors.CheckpointError, match=r"^shard: 2 problems\n  - one\n  - two$"):
        errors.raise_all(iter(["one", "two"]), errors.CheckpointError, "shard")


@pytest.mark.parametrize("package", [formats, families, quantize], ids=lambda p: p.__name__)
def test_a_public_file_is_an_entry(package: ModuleType) -> None:
    folder = Path(package.__path__[0])
    files = sorted(p.stem for p in folder.glob("*.py") if not p.name.startswith("_"))
    assert list(package.names()) == files
    for name in files:
        assert package.get(name) is not None
        assert getattr(package.get(name), "name", name) == name
    with pytest.raises(errors.RecipeError, match=f"unknown .* 'zzz'; known: {files[0]}"):
        package.get("zzz")


@pytest.mark.parametrize(("word", "close"), [("awk", "awq"), ("rtm", "rtn"), ("xyz", ""), ("", "")])
def test_the_closest_name_is_proposed_when_there_is_one(word: str, close: str) -> None:
    hint = registry.did_you_mean(word, ("awq", "rtn"))
    assert hint == (f" (did you mean {close!r}?)" if close else "")


def test_events_are_kept_and_passed_on_but_for_progress(tmp_path: Path) -> None:
    heard: list[str] = []
    log = EventLog(tmp_path / "run.jsonl", lambda event: heard.append(event["event"]))
    for name in ("start", "progress", "unit"):
        log({"event": name, "x": 1})
    assert heard == ["start", "progress", "unit"]
    kept = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [(e["event"], e["x"]) for e in kept] == [("start", 1), ("unit", 1)]
    assert all(e["time"] > 1.7e9 for e in kept)
