"""Which names mean a directory and which the Hub; no test here reaches a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from w4afp8 import hub
from w4afp8.errors import HubError, RecipeError


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What was asked of the Hub."""
    asked: list[tuple[Any, ...]] = []

    def download(identifier: str, revision: str | None, repo_type: str, allow_patterns: Any) -> str:
        asked.append((identifier, revision, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_directory_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshots: list[Any]) -> None:
    (tmp_path / "DeepSeek-R1").mkdir()
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("DeepSeek-R1") == Path("DeepSeek-R1")
    assert hub.find_model("org/name") == Path("org/name")
    assert snapshots == []


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("DeepSeek-R1", "deepseek-ai/DeepSeek-R1"),
        ("deepseek-v3.1", "deepseek-ai/deepseek-v3.1"),
        ("org/name", "org/name"),
    ],
)
def test_a_bare_name_of_a_family_is_its_publishers(snapshots: list[Any], name: str, identifier: str) -> None:
    hub.find_model(name, "main")
    assert snapshots == [(identifier, "main", "model", None)]


@pytest.mark.parametrize("name", ["./DeepSeek-R1", "/no/where", "~/models", "a/b/c", "llama"])
def test_what_is_neither_is_refused_without_asking(snapshots: list[Any], name: str) -> None:
    with pytest.raises(RecipeError, match="no such directory"):
        hub.find_model(name)
    assert snapshots == []


def test_data_is_a_path_or_a_data_set(snapshots: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert hub.find_data(str(tmp_path / "a.jsonl")) == tmp_path / "a.jsonl"
    hub.find_data("org/set@v1")
    hub.find_data("org/set")
    assert [(s[0], s[1], s[2]) for s in snapshots] == [("org/set", "v1", "dataset"), ("org/set", None, "dataset")]
    for name in ("none.jsonl", "folder/none.jsonl", "./org/set", "a/b/c", "word"):
        with pytest.raises(RecipeError, match="calibration data"):
            hub.find_data(name)


@pytest.mark.parametrize("message", ["", "gone\nand more"])
def test_the_hubs_error_is_one_line(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def refuse(*arguments: Any, **named: Any) -> str:
        raise OSError(message)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(HubError, match="model org/name: neither a local directory nor to be had") as caught:
        hub.find_model("org/name")
    assert "and more" not in str(caught.value)
