"""A push to the Hub: what arrives, where, in which order, and what is refused before anything is sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import snapshot_download
from pushes import REPO, assert_whole, send

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import CheckpointError, HubError, RecipeError, ValidationError
from w4afp8.hub.push import Order, push
from w4afp8.hub.shipment import is_weight
from w4afp8.validate import gate, seal, validate
from w4afp8.validate.seal import digest


def test_a_push_arrives_and_what_is_downloaded_validates(
    hub: FakeHub, proven: Path, quantized_toy: tuple[Path, Path], tmp_path: Path
) -> None:
    done = send(proven)
    assert_whole(hub, proven)
    assert done.created and hub.repos[REPO].private and done.others == []
    assert hub.seen["part"] > 3 and hub.seen["put"] > 0, "both kinds of upload were used"
    titles = [next(iter(tree.keys() & {"README.md"}), "") for _, tree in hub.repos[REPO].history]
    assert len(titles) == 3 and all(titles)
    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back", endpoint=hub.url))
    report = validate(back, quantized_toy[0])
    assert report.proven, report.problems
    assert gate.state(back).state is gate.State.PROVEN, "who downloads it can compare every byte with the proof"
    requests = dict(hub.seen)
    assert send(proven).sent == []
    assert hub.seen["commit"] == requests["commit"], "a push of what is there commits nothing"


def test_a_push_reads_every_file_once_for_its_digest(
    hub: FakeHub, proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every file is dated anew, as in a copy or a download."""
    read: list[str] = []
    for path in proven.rglob("*"):
        os.utime(path)
    monkeypatch.setattr(seal, "digest", lambda path: (read.append(path.name), digest(path))[1])
    send(proven)
    sealed = [name.rpartition("/")[2] for name in seal.sealed_files(proven)]
    assert sorted(name for name in read if name in sealed) == sorted(sealed)


def test_a_changed_card_is_sent_alone(hub: FakeHub, proven: Path) -> None:
    send(proven)
    sent = hub.finished.copy()
    assert send(proven, base_model="org/source").sent == ["README.md"]
    assert hub.finished == sent
    assert "base_model: org/source" in hub.content(hub.repos[REPO].trees["main"]["README.md"]).decode()


def test_a_pull_request_holds_everything_and_main_nothing(hub: FakeHub, proven: Path) -> None:
    hub.add_repo(REPO)
    done = send(proven, private=None, create_pr=True)
    assert done.revision == "refs/pr/1" and done.pull_request and done.pull_request.endswith("/discussions/1")
    assert_whole(hub, proven, revision="refs/pr/1")
    assert hub.repos[REPO].pull_requests == {1: "open"}
    assert hub.repos[REPO].trees["main"] == {}
    assert send(proven, private=None, revision="refs/pr/1").sent == []


def test_a_branch_is_made(hub: FakeHub, proven: Path) -> None:
    hub.add_repo(REPO)
    assert send(proven, private=None, revision="v2").revision == "v2"
    assert_whole(hub, proven, revision="v2")
    assert send(proven, private=None, revision="v2").sent == []


def test_a_dry_run_writes_and_sends_nothing(hub: FakeHub, proven: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in proven.rglob("*")}
    done = push(proven, Order(REPO), dry_run=True)
    assert [phase.title for phase in done.phases] == ["card and side files", "weights", "index and config"]
    assert {f.name for f in done.phases[2].files} == {INDEX, CONFIG}
    assert before == {p: p.stat().st_mtime_ns for p in proven.rglob("*")} and not hub.seen


def test_what_is_not_proven_needs_a_reason_which_the_card_states(hub: FakeHub, proven: Path) -> None:
    with pytest.raises(RecipeError, match="the directory is proven"):
        send(proven, force="why not")
    config = proven / "tokenizer.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValidationError, match=r"is stale: tokenizer\.json has .* bytes, had"):
        send(proven)
    (proven / "w4afp8/validation.json").unlink()
    with pytest.raises(ValidationError, match="is unvalidated"):
        send(proven)
    with pytest.raises(RecipeError, match="needs a reason"):
        send(proven, force=" ")
    assert not hub.seen
    assert send(proven, force="a trial of the line").state == "unvalidated"
    assert "a trial of the line" in hub.content(hub.repos[REPO].trees["main"]["README.md"]).decode()


def test_a_secret_stops_everything_and_is_not_shown(hub: FakeHub, proven: Path) -> None:
    secret = "hf_" + "B" * 34
    (proven / "notes.txt").write_text(f"first\ntoken = {secret}\n")
    with pytest.raises(ValidationError, match=r"notes\.txt, line 2: a Hugging Face token") as caught:
        send(proven, force="because")
    assert secret not in str(caught.value) and not hub.seen


def test_a_new_repository_needs_a_visibility_and_an_old_one_keeps_it(hub: FakeHub, proven: Path) -> None:
    with pytest.raises(RecipeError, match="give --private or --public"):
        send(proven, private=None)
    assert not hub.repos
    hub.add_repo(REPO, private=False)
    with pytest.raises(RecipeError, match="exists and is public, but --private was given"):
        send(proven, private=True)
    send(proven, private=False)
    assert_whole(hub, proven)


def test_another_checkpoint_is_not_overwritten_in_sight_of_its_readers(hub: FakeHub, proven: Path) -> None:
    send(proven)
    tree = hub.repos[REPO].trees["main"]
    name = next(name for name in tree if is_weight(name))
    tree[name].sha256 = "0" * 64
    with pytest.raises(HubError, match="holds another checkpoint"):
        send(proven)
    assert send(proven, create_pr=True).revision == "refs/pr/1"


def test_a_pull_request_for_nothing_is_not_opened(hub: FakeHub, proven: Path) -> None:
    send(proven)
    done = send(proven, create_pr=True)
    assert (done.revision, done.pull_request, done.sent, hub.repos[REPO].pull_requests) == ("main", None, [], {})


def test_other_files_of_the_repository_are_named_and_left(hub: FakeHub, proven: Path) -> None:
    repo = hub.add_repo(REPO)
    hub.blobs["x"] = b"theirs"
    from fake_hub import Entry

    repo.trees["main"]["notes.md"] = Entry("x", 6)
    assert send(proven, private=None).others == ["notes.md"]


def test_a_repository_of_others_is_refused(hub: FakeHub, proven: Path) -> None:
    with pytest.raises(HubError, match="creating others/toy: the Hub answered 403"):
        send(proven, repo="others/toy")


def test_a_file_over_the_limit_is_refused_before_the_network(
    hub: FakeHub, proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w4afp8.hub.shipment.LARGEST_FILE_BYTES", 300_000)
    with pytest.raises(HubError, match=r"safetensors has \d+ bytes, one file may have 300000; .*shard_gb"):
        send(proven)
    assert not hub.seen and not (proven / "README.md").exists()


@pytest.mark.parametrize("repo", ["toy", "a/b/c", "org/", "org/na me", "-x/y"])
def test_a_name_that_is_none_is_refused(proven: Path, repo: str) -> None:
    with pytest.raises(RecipeError, match="expected ORG/NAME"):
        send(proven, repo=repo)


def test_what_cannot_be_meant_is_refused(hub: FakeHub, proven: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--create-pr opens"):
        send(proven, create_pr=True, revision="v2")
    with pytest.raises(CheckpointError, match="no such directory"):
        send(tmp_path / "none")
    (proven / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="found no config"):
        send(proven, force="trial")
    assert not (proven / "README.md").exists() and not hub.seen, "refused after it wrote"


def test_the_command_speaks_json_and_never_the_token(
    hub: FakeHub, proven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from w4afp8.cli import cli, code_of

    run = lambda *words: code_of(lambda: cli.main(args=["push", *words], standalone_mode=False))  # noqa: E731
    assert run(str(proven), "--repo", REPO, "--dry-run") == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert run(str(proven), "--repo", REPO, "--public", "--json") == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["created"] and len(said["sent"]) > 8 and not hub.repos[REPO].private
    assert run(str(proven), "--repo", REPO) == 0
    out_again, _ = capsys.readouterr()
    assert "0 files sent, every file compared" in out_again
    lines = [line for line in out_again.splitlines() if "there already" in line]
    assert [line.split(":")[0] for line in lines] == ["card and side files", "weights", "index and config"]
    assert TOKEN not in out + err + out_again
    assert run(str(proven), "--repo", "others/x", "--public") == 8
