"""A push, and the question whether the Hub holds it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_hub import FakeHub

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.hub.push import Order, Pushed, push
from w4afp8.hub.shipment import is_weight

REPO = "org/toy"


def send(folder: Path, repo: str = REPO, **named: Any) -> Pushed:
    """A push that waits for nobody."""
    return push(folder, Order(repo, named.pop("private", True), **named), pause=lambda seconds: None)


def assert_whole(hub: FakeHub, folder: Path, repo: str = REPO, revision: str = "main") -> None:
    """The revision holds the directory, and at no commit did it show a config without all weights."""
    found = {path: hub.content(entry) for path, entry in hub.repos[repo].trees[revision].items()}
    here = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == here
    weights = {name for name in here if is_weight(name)}
    assert len(weights) >= 3
    for of, tree in hub.repos[repo].history:
        assert of != revision or not {INDEX, CONFIG} & tree.keys() or weights <= tree.keys()
