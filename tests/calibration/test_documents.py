"""Calibration text from every kind of file, and what is no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w4afp8.calibration import BUNDLED_TEXT
from w4afp8.calibration.documents import read_documents
from w4afp8.errors import CalibrationError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_every_shape_of_row_is_read(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"text": "a"}, {"content": "b", "id": 1}, "c", {"messages": CHAT}, {"conversations": sharegpt},
            {"text": None, "messages": CHAT}]  # fmt: skip
    assert list(read_documents(jsonl(tmp_path / "a.jsonl", *rows))) == ["a", "b", "c", CHAT, CHAT, CHAT]


def test_blank_lines_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n\n   \n{"text": "b"}')
    assert list(read_documents(path)) == ["a", "b"]


def test_parquet_holds_the_same_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "ç"]}), tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet")) == ["a", "b", "ç"]
    pq.write_table(pa.table({"messages": [CHAT, CHAT]}), tmp_path / "b.parquet")
    assert list(read_documents(tmp_path / "b.parquet")) == [CHAT, CHAT]


def test_other_files_are_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert list(read_documents(tmp_path / "a.txt")) == ["one\ntwo\n"]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    jsonl(tmp_path / "b.jsonl", {"text": "b"})
    (tmp_path / "a.txt").write_text("a")
    jsonl(tmp_path / "sub" / "c.json", {"text": "c"})
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    assert list(read_documents(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("plain text", "line 2: not JSON"),
        ("[1]", "line 2: found a list"),
        ("3", "line 2: found a int"),
        ('{"txt": "a"}', "line 2: none of text, content, messages, conversations holds text; found .*txt"),
        ('{"text": 5}', "line 2: none of"),
        ('{"messages": []}', "line 2: none of"),
        ('{"messages": ["hi"]}', "line 2: a chat turn must hold a role and a content"),
        ('{"messages": [{"role": "user"}]}', "line 2: a chat turn"),
        ('{"messages": [{"role": "user", "content": null}]}', "line 2: a chat turn"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match=says) as caught:
        list(read_documents(path))
    assert "bad.jsonl" in str(caught.value)


def test_a_nested_bomb_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(CalibrationError, match="line 1: not JSON"):
        list(read_documents(path))


def test_what_is_not_there_or_not_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.jsonl: no such file"):
        list(read_documents(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"empty: no .jsonl"):
        list(read_documents(tmp_path / "empty"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(CalibrationError, match=r"bad\.parquet"):
        list(read_documents(tmp_path / "bad.parquet"))


def test_the_bundled_text_is_clean() -> None:
    documents = list(read_documents(BUNDLED_TEXT))
    assert len(documents) > 50
    assert all(isinstance(d, str) and d.strip() for d in documents)
    text = "".join(d for d in documents if isinstance(d, str))
    assert "http://" not in text and "https://" not in text
    assert len({json.loads(line)["source"] for line in BUNDLED_TEXT.open()}) == 3
