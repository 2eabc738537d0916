"""Killed at any moment, run again: what was sent is not sent again, and nobody ever saw half a checkpoint."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from fake_hub import FakeHub
from pushes import assert_whole, send

from children import in_child, wait

KILLS = 10
ON_THE_WAY = ("preupload", "batch", "put", "part", "complete", "verify", "commit", "tree", "info")


def push_in_child(folder: Path) -> int:
    """A push in a process of its own: 0, or minus the signal that ended it."""

    def work() -> int:
        send(folder)
        return 0

    return wait(in_child(work))


@pytest.fixture
def requests_of_a_push(hub: FakeHub, proven: Path) -> dict[str, int]:
    """How many requests of each kind an undisturbed push makes; the Hub is empty again afterwards."""
    assert push_in_child(proven) == 0
    seen = dict(hub.seen)
    hub.forget()
    return seen


def test_killed_at_random_points_it_goes_on(
    hub: FakeHub, proven: Path, requests_of_a_push: dict[str, int], request: pytest.FixtureRequest
) -> None:
    chance = random.Random(request.node.name)
    moments = [(kind, n) for kind in ON_THE_WAY for n in range(1, requests_of_a_push[kind] + 1)]
    for kind, number in chance.sample(moments, KILLS):
        hub.forget()
        hub.kill_at = (kind, number)
        assert push_in_child(proven) == -signal.SIGKILL, (kind, number)
        before = set(hub.finished)
        sent_then = hub.finished.copy()
        assert push_in_child(proven) == 0, (kind, number)
        assert_whole(hub, proven)
        assert all(hub.finished[oid] == sent_then[oid] for oid in before), (kind, number, "sent again")
        assert set(hub.finished.values()) == {1}


def test_killed_again_and_again_it_still_ends(hub: FakeHub, proven: Path) -> None:
    for kind in ("part", "complete", "commit"):
        hub.kill_at = (kind, hub.seen[kind] + 1)
        assert push_in_child(proven) == -signal.SIGKILL
    assert push_in_child(proven) == 0
    assert_whole(hub, proven)
    assert set(hub.finished.values()) == {1}
