"""The resume contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w4afp8.checkpoint.journal import Journal, compare
from w4afp8.errors import ResumeError

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)


def without_none(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: without_none(value) for key, value in tree.items() if value is not None}
    return tree


@given(TREES, TREES)
def test_trees_differ_exactly_when_a_leaf_does(one: object, other: object) -> None:
    """A key that is absent counts as None."""
    assert not list(compare(one, one))
    if not list(compare(one, other)) and isinstance(one, dict) == isinstance(other, dict):
        assert without_none(one) == without_none(other)


def test_differences_are_shown_with_their_paths() -> None:
    earlier = {"tool": {"version": "1", "torch": "2"}, "gone": 1, "same": [1]}
    now = {"tool": {"version": "2", "torch": "2"}, "same": [1], "new": {"x": 2}}
    assert list(compare(earlier, now)) == [
        "tool.version: was 1, is 2",
        "gone: was 1, is absent",
        "new: was absent, is {'x': 2}",
    ]


def test_the_same_fingerprint_goes_on_and_another_is_refused_with_the_difference(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out" / "state")
    assert journal.fingerprint is None
    assert journal.open({"recipe": {"a": 1}}) is False
    journal.finish("layer-000", {"x": [1.5]})
    assert Journal(journal.folder).open({"recipe": {"a": 1}}) is True
    assert Journal(journal.folder).record("layer-000") == {"x": [1.5]}
    assert journal.record("layer-001") is None
    with pytest.raises(ResumeError, match=r"recipe\.a: was 1, is 2") as caught:
        journal.open({"recipe": {"a": 2}})
    assert str(tmp_path / "out") in str(caught.value) and "--resume never" in str(caught.value)
    assert journal.record("layer-000") == {"x": [1.5]}
    assert journal.fingerprint == {"recipe": {"a": 1}}


def test_many_differences_are_counted_not_poured_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.open({str(i): i for i in range(100)})
    with pytest.raises(ResumeError, match="and 80 more"):
        journal.open({str(i): i + 1 for i in range(100)})


def test_a_discarded_journal_remembers_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.open({"a": 1})
    journal.finish("u", {})
    journal.discard()
    assert journal.fingerprint is None and journal.record("u") is None and not journal.folder.exists()


def test_a_journal_is_never_forgotten_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is discarded, it must not look like a run whose finished units were never begun."""
    journal = Journal(tmp_path / "state")
    journal.open({"a": 1})
    journal.finish("u", {})

    def killed(folder: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("w4afp8.checkpoint.journal.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        journal.discard()
    assert journal.fingerprint is None


def test_a_second_run_is_kept_out_until_the_first_lets_go(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "state"), Journal(tmp_path / "state")
    first.open({"a": 1})
    with first.locked(), pytest.raises(ResumeError, match="another run"), second.locked():
        pass
    with second.locked():
        pass
