"""Evaluation text to token sequences: documents in their order, joined, cut; no draw, no seed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from w4afp8.calibration.documents import read_documents
from w4afp8.calibration.tokens import CheckpointTokenizer
from w4afp8.errors import CalibrationError


def read_sequences(data: Path, model: Path, sequences: int, sequence: int, vocabulary: int) -> Tensor:
    """The first `sequences` * `sequence` tokens of the data: int64 [sequences, sequence].

    Documents are tokenized one by one with the model's own tokenizer, without special tokens, and joined.
    Raises: CalibrationError when the text is too short, or the tokenizer is of another model.
    """
    if sequences < 1 or sequence < 2:
        raise CalibrationError(f"{sequences} sequences of {sequence} tokens: expected at least one of two tokens")
    tokenizer = CheckpointTokenizer(model)
    wanted = sequences * sequence
    tokens: list[int] = []
    for document in read_documents(data):
        tokens += tokenizer.encode(document)
        if len(tokens) >= wanted:
            break
    if len(tokens) < wanted:
        raise CalibrationError(
            f"{data.name}: holds {len(tokens)} tokens, {sequences} sequences of {sequence} need {wanted}; "
            "give more text or ask for fewer"
        )
    result = torch.tensor(tokens[:wanted], dtype=torch.int64).view(sequences, sequence)
    if int(result.max()) >= vocabulary:
        raise CalibrationError(
            f"the tokenizer gives id {int(result.max())}, the model knows {vocabulary}; it is another model's tokenizer"
        )
    return result
