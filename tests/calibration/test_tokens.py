"""Sequences of tokens: equal shares, the same every time, and never too few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w4afp8.calibration import BUNDLED_TEXT
from w4afp8.calibration.documents import Document
from w4afp8.calibration.tokens import CheckpointTokenizer, choose_sequences, digest
from w4afp8.errors import CalibrationError


class Letters:
    """A tokenizer that reads letters; chats are their contents."""

    def encode(self, document: Document) -> list[int]:
        text = document if isinstance(document, str) else "".join(turn["content"] for turn in document)
        return [ord(letter) % 256 for letter in text]


def chosen(*sources: Path, tokens: int = 40, sequence: int = 10, seed: int = 0, vocabulary: int = 256) -> torch.Tensor:
    return choose_sequences(sources, Letters(), tokens=tokens, sequence=sequence, seed=seed, vocabulary=vocabulary)


@pytest.fixture
def ab(tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 4000)
    return tmp_path / "a.txt", tmp_path / "b.txt"


def test_each_source_gives_an_equal_share(ab: tuple[Path, Path]) -> None:
    for tokens, shares in ((40, (2, 2)), (50, (2, 3)), (10, (0, 1))):
        found = chosen(*ab, tokens=tokens)
        assert [(found == ord(letter)).all(1).sum().item() for letter in "ab"] == list(shares)


@given(tokens=st.integers(1, 400), sequence=st.integers(2, 30))
def test_there_are_as_many_sequences_as_the_tokens_need(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, sequence: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_text("x" * 30_000)
    found = chosen(path, tokens=tokens, sequence=sequence)
    assert found.shape == (-(-tokens // sequence), sequence)
    assert found.dtype == torch.int64


def test_the_choice_depends_on_the_seed_alone(miniature: Path) -> None:
    tokenizer = CheckpointTokenizer(miniature)

    def draw(seed: int) -> torch.Tensor:
        return choose_sequences([BUNDLED_TEXT], tokenizer, tokens=512, sequence=64, seed=seed, vocabulary=2048)

    assert torch.equal(draw(3), draw(3))
    assert digest(draw(3)) == digest(draw(3)) != digest(draw(4))


def test_short_documents_are_joined_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:03d}"}) + "\n" for i in range(20)))
    found = chosen(path, tokens=60, sequence=10)
    text = "".join(chr(t) for t in found.flatten().tolist())
    assert sorted(text[i : i + 3] for i in range(0, 60, 3)) == [f"{i:03d}" for i in range(20)]


def test_long_documents_are_read_all_over(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a" * 5000 + "b" * 5000 + "c" * 5000)
    assert set(chosen(path, tokens=600).flatten().tolist()) == {ord("a"), ord("b"), ord("c")}


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    for name in ("empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text(content)
        with pytest.raises(CalibrationError, match=f"{name}: holds no text; the file is empty") as caught:
            chosen(tmp_path / name)
        assert caught.value.exit_code == 5


def test_too_little_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 35)
    with pytest.raises(CalibrationError, match=r"short\.txt: holds 3 sequences of 10 tokens, 4 are needed"):
        chosen(tmp_path / "short.txt")


def test_another_models_tokenizer_is_noticed(ab: tuple[Path, Path]) -> None:
    with pytest.raises(CalibrationError, match=r"gives id 98, the model knows 98; it is another model's tokenizer"):
        chosen(*ab, vocabulary=98)


def test_a_checkpoint_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"found no tokenizer.json"):
        CheckpointTokenizer(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"tokenizer\.json"):
        CheckpointTokenizer(tmp_path)


def test_text_is_encoded_as_transformers_does(miniature: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(miniature)
    for text in ("Elementary, my dear Watson.", "", "ünïcödé \U0001f600\n\n"):
        assert CheckpointTokenizer(miniature).encode(text) == theirs.encode(text, add_special_tokens=False)


def test_chats_go_through_the_checkpoints_template(tmp_path: Path, miniature: Path) -> None:
    chat: Document = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(CalibrationError, match="holds chats, but the tokenizer has no chat template"):
        CheckpointTokenizer(miniature).encode(chat)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(miniature / name, tmp_path / name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = CheckpointTokenizer(tmp_path)
    assert tokenizer.encode(chat) == tokenizer.encode("user: Hi there\nassistant: Hello\n")
