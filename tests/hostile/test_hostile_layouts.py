"""A directory of a runtime layout, damaged: `validate` and the way back end with a typed error and write nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import corpus
import corpus_layouts
import pytest
from corpus import Hostile
from forks import Forks

from w4afp8.errors import W4AFP8Error
from w4afp8.relayout.back import prepare_back, restore
from w4afp8.relayout.plan import prepare
from w4afp8.relayout.run import lay_out
from w4afp8.validate import validate
from w4afp8.validate.seal import digest

# command -> its words, and the exit codes of its refusals
COMMANDS: dict[str, tuple[list[str], set[int]]] = {
    "validate": (["validate", "IN", "--quick"], {3, 7}),
    "go back": (["convert", "IN", "--layout", "canonical", "-o", "OUT"], {2, 3, 6}),
}
OF_HEADERS = [row for row in corpus.CORPUS if row.seen_by == "headers"]


@pytest.fixture(scope="session")
def canonical(quantized_toys: Callable[[str], tuple[Path, Path]]) -> Path:
    return quantized_toys("sglang_w4afp8")[1]


@pytest.fixture(scope="session")
def laid_out(canonical: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over two ranks; read only."""
    out = tmp_path_factory.mktemp("laid-out") / "sm90"
    lay_out(prepare(canonical, "sm90", out, tp=1, ep=2, tolerance=0.0, shard_gb=1.0))
    return out


def spelled(words: list[str], folder: Path, out: Path) -> list[str]:
    return [{"IN": str(folder), "OUT": str(out)}.get(word, word) for word in words]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hostile", corpus_layouts.CORPUS, ids=lambda hostile: hostile.name.replace(" ", "-"))
def test_a_hostile_layout_is_refused(
    laid_out: Path, serving: Forks, tmp_path: Path, hostile: Hostile, command: str
) -> None:
    words, codes = COMMANDS[command]
    folder, out = tmp_path / "home" / "in", tmp_path / "out"
    shutil.copytree(laid_out, folder)
    hostile.damage(folder)
    code = serving.run(spelled(words, folder, out), tmp_path / "said")
    said = (tmp_path / "said").read_text(errors="replace")
    assert code in codes, (code, said[-3000:])
    assert "Traceback" not in said and "out of memory" not in said and len(said) < 60_000
    assert not out.exists(), "something was written"


def test_the_corpus_spoils_what_is_sound(laid_out: Path, serving: Forks, tmp_path: Path) -> None:
    """The same commands pass before the damage."""
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(laid_out, folder)
    for words, _ in COMMANDS.values():
        assert serving.run(spelled(words, folder, out), tmp_path / "said") == 0, (tmp_path / "said").read_text()


@pytest.mark.parametrize("hostile", OF_HEADERS, ids=lambda hostile: hostile.name.replace(" ", "-"))
def test_what_spoils_any_checkpoint_spoils_a_layout(
    laid_out: Path, canonical: Path, tmp_path: Path, hostile: Hostile
) -> None:
    """`validate` finds it; the way back refuses before it writes, or did not need what was damaged."""
    folder, out = tmp_path / "home" / "in", tmp_path / "out"
    shutil.copytree(laid_out, folder)
    hostile.damage(folder)
    assert not validate(folder, sample=1).passed
    try:
        laid, needs, jobs = prepare_back(folder, 1)
    except W4AFP8Error:
        assert not out.exists()
        return
    with laid:
        restore(laid, needs, out, jobs)
    for path in canonical.rglob("*"):
        assert path.is_dir() or digest(out / path.relative_to(canonical)) == digest(path)
