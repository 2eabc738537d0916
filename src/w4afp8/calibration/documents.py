"""Documents from JSONL, plain text or parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w4afp8.errors import CalibrationError

TEXT_FIELDS = ("text", "content")
CHAT_FIELDS = ("messages", "conversations")

# A document is text, or a chat: a list of {"role", "content"}.
Document = str | list[dict[str, str]]


def read_documents(path: Path) -> Iterator[Document]:
    """Every document of a file (or of a folder's files, in name order).

    `.jsonl`/`.json` lines hold `text`, `content`, `messages` or `conversations`; `.parquet` the same as columns;
    any other file is one document of plain text.
    Raises: CalibrationError for a missing file, a line that is no JSON, or a row without a known field.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".json", ".parquet", ".txt"))
        if not files:
            raise CalibrationError(f"{path}: no .jsonl, .json, .parquet or .txt file in this folder")
        for file in files:
            yield from read_documents(file)
    elif not path.is_file():
        raise CalibrationError(
            f"{path}: no such file; give JSONL, plain text, parquet, a folder of them or a Hub dataset"
        )
    elif path.suffix in (".jsonl", ".json"):
        yield from _jsonl(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        yield path.read_text(errors="replace")


def _jsonl(path: Path) -> Iterator[Document]:
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CalibrationError(f"{path}, line {number}: not JSON ({error})") from error
            yield _document(row, f"{path}, line {number}")


def _parquet(path: Path) -> Iterator[Document]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CalibrationError(f"{path}: reading parquet needs pyarrow; pip install 'w4afp8[parquet]'") from error
    number = 0
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield _document(row, f"{path}, row {number}")
    except (ValueError, OSError) as error:  # pyarrow's own errors are one or the other
        raise CalibrationError(f"{path}: not parquet ({error}); fetch it again") from error


def _document(row: Any, where: str) -> Document:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise CalibrationError(f"{where}: found a {type(row).__name__}, expected an object with a text field")
    for field in TEXT_FIELDS:
        if isinstance(row.get(field), str):
            return row[field]  # type: ignore[no-any-return]
    for field in CHAT_FIELDS:
        if isinstance(row.get(field), list) and row[field]:
            return [_turn(turn, where) for turn in row[field]]
    raise CalibrationError(
        f"{where}: none of {', '.join(TEXT_FIELDS + CHAT_FIELDS)} holds text; found {', '.join(map(str, row))}"
    )


def _turn(turn: Any, where: str) -> dict[str, str]:
    if isinstance(turn, dict):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": {"human": "user", "gpt": "assistant"}.get(role, role), "content": content}
    raise CalibrationError(f"{where}: a chat turn must hold a role and a content, found {str(turn)[:80]}")
