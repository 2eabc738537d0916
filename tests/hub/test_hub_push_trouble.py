"""A push on a bad day: answers that fail, connections that break, logins that end, others who commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub
from pushes import REPO, assert_whole, send

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import HubError


@pytest.mark.parametrize("kind", ["put", "part", "complete", "batch", "preupload", "tree", "info", "verify"])
@pytest.mark.parametrize("trouble", [500, 503, "reset", "slow"])
def test_trouble_on_the_way_is_survived(hub: FakeHub, proven: Path, kind: str, trouble: int | str,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.add_repo(REPO, private=True)
    hub.trouble = lambda of, count: trouble if of == kind and count == 2 else None
    send(proven)
    assert_whole(hub, proven)
    assert set(hub.finished.values()) == {1}


@pytest.mark.parametrize("trouble", [500, 503, "reset", "lost", "doubled"])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_commit_that_fails_is_tried_again(hub: FakeHub, proven: Path, trouble: int | str, which: int) -> None:
    hub.trouble = lambda kind, count: trouble if kind == "commit" and count == which else None
    send(proven)
    assert_whole(hub, proven)
    assert set(hub.finished.values()) == {1}, "finished files were sent again"
    assert len(hub.repos[REPO].history) == 3, "committed twice"


@pytest.mark.parametrize("kind", ["put", "part"])
def test_an_expired_upload_address_is_asked_for_again(hub: FakeHub, proven: Path, kind: str) -> None:
    hub.trouble = lambda of, count: 403 if of == kind and count == 2 else None
    send(proven)
    assert_whole(hub, proven)
    assert set(hub.finished.values()) == {1} and hub.seen["batch"] == 3


def test_a_pull_request_that_broke_off_says_how_to_go_on(hub: FakeHub, proven: Path) -> None:
    hub.add_repo(REPO)
    hub.trouble = lambda kind, count: 403 if kind == "commit" and count == 2 else None
    with pytest.raises(HubError, match="go on with --revision refs/pr/1"):
        send(proven, private=None, create_pr=True)
    assert hub.repos[REPO].pull_requests == {1: "draft"}
    done = send(proven, private=None, revision="refs/pr/1")
    assert done.pull_request and done.pull_request.endswith("/discussions/1")
    assert_whole(hub, proven, revision="refs/pr/1")
    assert hub.repos[REPO].pull_requests == {1: "open"}
    assert set(hub.finished.values()) == {1}


def test_a_hub_that_lost_a_byte_is_noticed(hub: FakeHub, proven: Path) -> None:
    send(proven)
    hub.repos[REPO].trees["main"]["tokenizer.json"].oid = "0" * 40
    hub.trouble = lambda kind, count: None
    original = hub.branch

    def lossy(repo: Any, revision: str, tree: Any) -> None:
        original(repo, revision, tree)
        tree["tokenizer.json"].oid = "0" * 40

    hub.branch = lossy  # type: ignore[method-assign]
    with pytest.raises(HubError, match=r"does not hold what was sent.*tokenizer\.json: found .* of other content"):
        send(proven)


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("info", 401, "the Hub answered 401 .*hf auth login"),
        ("create", 403, "creating org/toy: the Hub answered 403 .*may not write there"),
        ("commit", 403, "sending card and side files to org/toy: the Hub answered 403 .*may not write"),
        ("commit", 409, "the Hub answered 409 .*changed meanwhile"),
        ("commit", 412, "the Hub answered 412 .*changed meanwhile"),
        ("batch", 413, "the Hub answered 413 .*storage"),
        ("commit", 402, "the Hub answered 402 .*billing"),
        ("tree", 500, "the Hub answered 500 .*run the same command again"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: FakeHub, proven: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: int, says: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.trouble = lambda of, count: status if of == kind else None
    with pytest.raises(HubError, match=says) as caught:
        send(proven)
    assert caught.value.exit_code == 8 and TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    tree = hub.repos[REPO].trees["main"] if REPO in hub.repos else {}
    assert not {INDEX, CONFIG} & tree.keys()


@pytest.mark.parametrize("kind", ["preupload", "batch", "commit"])
def test_a_login_that_ends_on_the_way_is_said_and_a_new_one_goes_on(hub: FakeHub, proven: Path, kind: str) -> None:
    hub.trouble = lambda of, count: 401 if of == kind and count >= 2 else None
    with pytest.raises(HubError, match=r"the Hub answered 401 .*missing or expired: run `hf auth login`"):
        send(proven)
    assert not {INDEX, CONFIG} & hub.repos[REPO].trees["main"].keys()
    hub.trouble = lambda of, count: None
    send(proven)
    assert_whole(hub, proven)
    assert set(hub.finished.values()) == {1}


def test_a_commit_by_somebody_else_in_between_is_a_conflict(hub: FakeHub, proven: Path) -> None:
    def meanwhile(kind: str, count: int) -> None:
        if kind == "batch":
            hub.branch(hub.repos[REPO], "main", dict(hub.repos[REPO].trees["main"]))

    hub.trouble = meanwhile
    with pytest.raises(HubError, match="412"):
        send(proven)
    hub.trouble = lambda kind, count: None
    send(proven)
    assert_whole(hub, proven)


def test_no_login_is_said_before_anything_is_asked(hub: FakeHub, proven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="not logged in to the Hub: run `hf auth login`"):
        send(proven)
    assert not hub.seen
    monkeypatch.setenv("HF_TOKEN", "hf_" + "c" * 34)
    with pytest.raises(HubError, match="401"):
        send(proven)


def test_no_network_is_said(proven: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"looking for org/toy: no connection .*check the network"):
        send(proven)
