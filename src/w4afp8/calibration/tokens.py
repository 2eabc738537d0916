"""Token sequences of equal length, reproducibly chosen."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w4afp8.calibration.documents import Document, read_documents
from w4afp8.errors import CalibrationError

LARGEST_FILE_CHARACTERS = 512 << 20  # of one source are looked at; more than any calibration needs
CHARACTERS_PER_TOKEN = 12  # more than any tokenizer averages, so a piece this long fills a sequence


class Tokenizer(Protocol):
    """Text and chats to token ids."""

    def encode(self, document: Document) -> list[int]:
        """Ids without special tokens; a chat through the checkpoint's own template."""
        ...


class CheckpointTokenizer:
    """The tokenizer of a checkpoint directory: tokenizer.json directly, transformers only for what that cannot do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fast: Any = None
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer as FastTokenizer

            try:
                self._fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library raises nothing narrower
                raise CalibrationError(
                    f"{folder / 'tokenizer.json'}: not a tokenizer ({error}); copy it again"
                ) from error
        elif not (folder / "tokenizer_config.json").is_file():
            raise CalibrationError(
                f"{folder}: found no tokenizer.json; copy the model's tokenizer files beside its weights"
            )
        self._full: Any = None

    def encode(self, document: Document) -> list[int]:
        if isinstance(document, str):
            if self._fast is not None:
                return list(self._fast.encode(document, add_special_tokens=False).ids)
            return list(self._transformers().encode(document, add_special_tokens=False))
        return list(self._transformers().encode(self._render(document), add_special_tokens=False))

    def _render(self, chat: list[dict[str, str]]) -> str:
        tokenizer = self._transformers()
        if not tokenizer.chat_template:
            raise CalibrationError(
                f"{self._folder}: the calibration data holds chats, but the tokenizer has no chat template; "
                "give plain text instead"
            )
        return str(tokenizer.apply_chat_template(chat, tokenize=False))

    def _transformers(self) -> Any:
        if self._full is None:
            from transformers import AutoTokenizer

            self._full = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
        return self._full


def choose_sequences(
    sources: Sequence[Path], tokenizer: Tokenizer, *, tokens: int, sequence: int, seed: int, vocabulary: int
) -> Tensor:
    """Equal shares of every source, drawn from all over it: int64 [tokens / sequence rounded up, sequence].

    Documents are cut into pieces long enough for one sequence, the pieces are shuffled by `seed`, and each gives its
    first `sequence` tokens; what is shorter is joined with what follows, and a source that is short gives the rest too.
    Raises: CalibrationError when a source is empty or too short, or the tokenizer is of another model.
    """
    wanted = -(-tokens // sequence)
    chosen: list[list[int]] = []
    for number, path in enumerate(sources):
        share = wanted * (number + 1) // len(sources) - wanted * number // len(sources)
        found = _draw(path, tokenizer, share, sequence, seed + number)
        if len(found) < share:
            raise CalibrationError(
                f"{path}: holds {len(found)} sequences of {sequence} tokens, {share} are needed; "
                "give more text or lower calibration.tokens"
            )
        chosen += found
    result = torch.tensor(chosen, dtype=torch.int64)
    if int(result.max()) >= vocabulary:
        raise CalibrationError(
            f"the tokenizer gives id {int(result.max())}, the model knows {vocabulary}; it is another model's tokenizer"
        )
    return result


def _draw(path: Path, tokenizer: Tokenizer, share: int, sequence: int, seed: int) -> list[list[int]]:
    pieces = list(_pieces(path, sequence * CHARACTERS_PER_TOKEN))
    if not pieces:
        raise CalibrationError(f"{path}: holds no text; the file is empty")
    random.Random(seed).shuffle(pieces)
    found: list[list[int]] = []
    rest: list[int] = []
    spare: list[int] = []
    for piece in pieces:
        if len(found) == share:
            break
        ids = tokenizer.encode(piece)
        if len(ids) >= sequence:
            found.append(ids[:sequence])
            spare += ids[sequence:]
        else:
            rest += ids
            if len(rest) >= sequence:
                found.append(rest[:sequence])
                rest = rest[sequence:]
    spare += rest  # a short text gives all it has
    for begin in range(0, len(spare) - sequence + 1, sequence):
        if len(found) < share:
            found.append(spare[begin : begin + sequence])
    return found


def _pieces(path: Path, characters: int) -> Iterator[Document]:
    seen = 0
    for document in read_documents(path):
        if isinstance(document, str):
            for begin in range(0, len(document), characters):
                piece = document[begin : begin + characters]
                if piece.strip():
                    yield piece
            seen += len(document)
        else:
            yield document
            seen += sum(len(turn["content"]) for turn in document)
        if seen > LARGEST_FILE_CHARACTERS:
            return


def digest(tokens_BS: Tensor) -> str:
    """SHA-256 of the token ids: what the fingerprint keeps of the calibration data."""
    return hashlib.sha256(tokens_BS.contiguous().numpy().tobytes()).hexdigest()
