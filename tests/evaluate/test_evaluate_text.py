"""The text becomes the same tokens every time: documents in order, joined, cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from w4afp8.errors import CalibrationError
from w4afp8.evaluate.text import read_sequences


def test_sequences_are_the_joined_documents_cut(miniature: Path, text: Path) -> None:
    tokenizer = Tokenizer.from_file(str(miniature / "tokenizer.json"))
    ids: list[int] = []
    with text.open() as lines:
        while len(ids) < 300:
            ids += tokenizer.encode(json.loads(next(lines))["text"], add_special_tokens=False).ids
    assert read_sequences(text, miniature, 3, 100, 2048).flatten().tolist() == ids[:300]


def test_short_documents_share_a_sequence(miniature: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": "one two three"}) + "\n" for _ in range(40)))
    sequences = read_sequences(data, miniature, 2, 10, 2048)
    assert list(sequences.shape) == [2, 10]


def test_a_smaller_vocabulary_is_another_models(miniature: Path, text: Path) -> None:
    with pytest.raises(CalibrationError, match="another model's tokenizer"):
        read_sequences(text, miniature, 2, 50, 10)


@pytest.mark.parametrize(("sequences", "sequence"), [(0, 64), (2, 1)])
def test_a_sequence_needs_a_token_to_predict(miniature: Path, text: Path, sequences: int, sequence: int) -> None:
    with pytest.raises(CalibrationError, match="at least one of two tokens"):
        read_sequences(text, miniature, sequences, sequence, 2048)
