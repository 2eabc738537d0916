"""A directory in a runtime layout goes to the Hub and comes back: ranks, record and proof, every byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_hub import FakeHub
from huggingface_hub import snapshot_download

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.errors import W4AFP8Error
from w4afp8.hub.push import Order, push
from w4afp8.relayout.back import prepare_back, restore
from w4afp8.relayout.plan import prepare
from w4afp8.relayout.run import lay_out
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import take_seal

REPO = "org/toy-sm90"


@pytest.fixture
def laid(proven: Path, tmp_path: Path) -> Path:
    """A proven checkpoint in the layout of the sm_90a kernels, over two ranks."""
    out = tmp_path / "toy-sm90"
    lay_out(prepare(proven, "sm90", out, tp=1, ep=2, tolerance=0, shard_gb=0.0003))
    return out


def prove(folder: Path) -> None:
    seal = take_seal(folder)
    report = validate(folder)
    gate.write_verdict(folder, report, seal)
    assert report.proven, report.problems


def test_a_layout_arrives_whole_and_what_is_downloaded_is_proven(
    hub: FakeHub, laid: Path, proven: Path, tmp_path: Path
) -> None:
    prove(laid)
    push(laid, Order(REPO, True), pause=lambda seconds: None)
    here = {p.relative_to(laid).as_posix(): p.read_bytes() for p in laid.rglob("*") if p.is_file()}
    assert {path: hub.content(entry) for path, entry in hub.repos[REPO].trees["main"].items()} == here
    weights = {name for name in here if name.endswith(".safetensors")}
    assert any(name.startswith("rank-1-of-2/") for name in weights)
    for _, tree in hub.repos[REPO].history:
        last = {name for name in tree if name.rpartition("/")[2] in (INDEX, CONFIG) and "canonical" not in name}
        assert not last or weights <= tree.keys(), "no config is seen before every rank's weights"
    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back", endpoint=hub.url))
    assert gate.state(back, deep=True).state is gate.State.PROVEN
    report = validate(back)
    assert report.proven, report.problems
    found, needs, jobs = prepare_back(back)
    with found:
        restore(found, needs, tmp_path / "again", jobs)
    canonical = json.loads((back / "w4afp8" / "layout.json").read_text())
    for name in (*canonical["shards"], CONFIG, INDEX):
        assert (tmp_path / "again" / name).read_bytes() == (proven / name).read_bytes(), name


def test_a_layout_that_is_not_proven_or_has_lost_a_rank_is_not_sent(hub: FakeHub, laid: Path) -> None:
    with pytest.raises(W4AFP8Error, match="validat"):
        push(laid, Order(REPO, True), pause=lambda seconds: None)
    prove(laid)
    shutil.rmtree(laid / "rank-1-of-2")
    with pytest.raises(W4AFP8Error, match=r"rank-1-of-2.* is gone"):
        push(laid, Order(REPO, True), pause=lambda seconds: None)
    assert hub.seen["commit"] == 0
