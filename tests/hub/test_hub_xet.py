"""The same promises through Xet, which huggingface_hub uses by default: order, resumption, trouble, refusals."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from fake_storage import chunks
from huggingface_hub import snapshot_download
from huggingface_hub.utils._xet import abort_xet_session
from pushes import REPO, assert_whole, send
from test_hub_resume import push_in_child

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import HubError
from w4afp8.hub import shipment
from w4afp8.hub.shipment import is_weight
from w4afp8.validate import gate, validate

KILLS = 10
ON_THE_WAY = ("preupload", "token", "xorb", "shard", "commit", "tree", "info")


@pytest.fixture
def small_commits(monkeypatch: pytest.MonkeyPatch, proven: Path) -> int:
    """Commits so small that the weights take several; how many."""
    monkeypatch.setattr(shipment, "COMMIT_BYTES", 600_000)
    weights = [f for phase in shipment.pack(proven, {}) for f in phase.files if is_weight(f.name)]
    found = len(list(shipment.batches(weights)))
    assert found > 1
    return found


def test_it_is_what_is_installed_by_default() -> None:
    assert any(line.startswith("hf-xet") and "extra" not in line for line in requires("huggingface_hub") or [])
    assert find_spec("hf_xet"), "tests that say Xet would speak of git LFS"


def test_a_chunk_is_what_it_was() -> None:
    """By hand: as it is, and in an LZ4 frame with a copy that overlaps itself."""
    frame = b"\x04\x22\x4d\x18\x40\x40\xc0" + (7).to_bytes(4, "little") + b"\x10a\x01\x00\x20bc" + bytes(4)
    xorb = b"".join(
        b"\0" + len(stored).to_bytes(3, "little") + bytes([scheme]) + len(content).to_bytes(3, "little") + stored
        for scheme, stored, content in ((0, b"plain", b"plain"), (1, frame, b"aaaaabc"))
    )
    assert list(chunks(xorb)) == [b"plain", b"aaaaabc"]


def test_a_push_arrives_and_what_is_downloaded_validates(
    xet_hub: FakeHub, proven: Path, quantized_toy: tuple[Path, Path], tmp_path: Path
) -> None:
    send(proven)
    assert_whole(xet_hub, proven)
    assert xet_hub.seen["xorb"] > 0 and not xet_hub.seen["batch"], "the large files went through Xet"
    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back", endpoint=xet_hub.url))
    assert validate(back, quantized_toy[0]).proven and gate.state(back).state is gate.State.PROVEN
    requests = dict(xet_hub.seen)
    assert send(proven).sent == []
    assert xet_hub.seen["commit"] == requests["commit"] and xet_hub.seen["xorb"] == requests["xorb"]


def test_a_pull_request_is_filled_through_xet_too(xet_hub: FakeHub, proven: Path) -> None:
    xet_hub.add_repo(REPO, private=True)
    assert send(proven, create_pr=True).revision == "refs/pr/1"
    assert_whole(xet_hub, proven, revision="refs/pr/1")
    assert xet_hub.seen["xorb"] > 0 and xet_hub.repos[REPO].trees["main"] == {}


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [(kind, trouble) for kind in ("token", "xorb", "shard", "cas") for trouble in (500, "reset", "slow")]
    + [(kind, status) for kind in ("xorb", "shard", "cas") for status in (401, 403)],
)
def test_trouble_on_the_way_is_survived(xet_hub: FakeHub, proven: Path, kind: str, trouble: int | str) -> None:
    """A key to the storage that ran out (401, 403) among it; when the Hub gives none, that is final."""
    xet_hub.trouble = lambda of, count: trouble if of == kind and count == 1 else None
    send(proven)
    assert_whole(xet_hub, proven)
    assert set(xet_hub.finished.values()) == {1}


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("token", 401, "the Hub answered 401 .*hf auth login"),
        ("token", 403, "the Hub answered 403 .*may not write there"),
        ("xorb", 403, "the Hub answered 403 .*may not write there"),
        ("xorb", 413, "the Hub answered 413 .*free or buy storage"),
        ("shard", 413, "the Hub answered 413 .*free or buy storage"),
        ("xorb", 402, "the Hub answered 402 .*billing"),
    ],
)
def test_a_refusal_says_what_to_do(xet_hub: FakeHub, proven: Path, kind: str, status: int, says: str) -> None:
    xet_hub.trouble = lambda of, count: status if of == kind else None
    with pytest.raises(HubError, match=says) as caught:
        send(proven)
    said = str(caught.value)
    assert caught.value.exit_code == 8 and TOKEN not in said and "\n" not in said and "no connection" not in said
    assert not {INDEX, CONFIG} & xet_hub.repos[REPO].trees["main"].keys()


def test_the_weights_are_committed_as_they_arrive(xet_hub: FakeHub, proven: Path, small_commits: int) -> None:
    """A push that broke off in the middle of them has its finished part there, and does not touch it again."""
    xet_hub.trouble = lambda kind, count: 403 if kind == "commit" and count == 3 else None
    with pytest.raises(HubError, match="403"):
        send(proven)
    there = {name for name in xet_hub.repos[REPO].trees["main"] if is_weight(name)}
    assert there and len(xet_hub.repos[REPO].history) == 2
    received = xet_hub.storage.received.copy()
    done = send(proven)
    assert_whole(xet_hub, proven)
    assert not there & set(done.sent) and len(xet_hub.repos[REPO].history) == 2 + small_commits
    assert all(xet_hub.storage.received[xorb] == count for xorb, count in received.items()), "sent again"


def test_ctrl_c_stops_at_once_and_keeps_what_was_sent(xet_hub: FakeHub, proven: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "w4afp8.cli", "push", str(proven), "--repo", REPO, "--private"]
    environment = os.environ | {"HF_ENDPOINT": xet_hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's child would ignore it
    child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)

    def at_the_weights(kind: str, count: int) -> None:
        if kind == "xorb" and INDEX not in xet_hub.repos[REPO].trees["main"] and xet_hub.seen["commit"] == 1:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)  # no answer while it can still stop

    xet_hub.trouble = at_the_weights
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted; what was finished is kept" in said, said
    xet_hub.trouble = lambda kind, count: None
    assert "README.md" not in send(proven).sent
    assert_whole(xet_hub, proven)


def test_killed_at_random_points_it_goes_on(
    xet_hub: FakeHub, proven: Path, small_commits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    abort_xet_session()
    assert push_in_child(proven) == 0
    moments = [(kind, n) for kind in ON_THE_WAY for n in range(1, xet_hub.seen[kind] + 1)]
    for kind, number in random.Random(request.node.name).sample(moments, KILLS):
        xet_hub.forget()
        monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / f"xet-{kind}-{number}"))
        xet_hub.kill_at = (kind, number)
        assert push_in_child(proven) == -signal.SIGKILL, (kind, number)
        tree = dict(xet_hub.repos[REPO].trees["main"]) if REPO in xet_hub.repos else {}
        sent_then = {entry.sha256: xet_hub.finished[entry.sha256] for entry in tree.values() if entry.sha256}
        assert push_in_child(proven) == 0, (kind, number)
        assert_whole(xet_hub, proven)
        assert all(xet_hub.finished[oid] == count == 1 for oid, count in sent_then.items()), (kind, number)
