"""The evaluation itself: the source and its quantized checkpoints pass the same text layer by layer, side by side.

Letters: B sequences, S positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.evaluate.activations import Activations, simulate
from w4afp8.evaluate.opened import Opened
from w4afp8.evaluate.scores import EvaluationReport, Scores, summarize
from w4afp8.evaluate.text import read_sequences
from w4afp8.model.decoder import exact

Progress = Callable[[str, int, int], None]  # (what, done, total)
OUTPUT = ("model.norm.weight", "lm_head.weight")  # what turns states into logits
SAME_TEXT = ("vocabulary", "hidden", "layers")  # dimensions that both sides must share


def evaluate(
    folder: Path,
    against: Path,
    data: Path,
    *,
    sequences: int = 32,
    sequence: int = 512,
    activations: str = "token",
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> EvaluationReport:
    """KL divergence, perplexity and top-1 agreement of one checkpoint beside its source."""
    return evaluate_many(
        [(folder, activations)], against, data, sequences=sequences, sequence=sequence, device=device,
        on_progress=on_progress,
    )[0]  # fmt: skip


def evaluate_many(
    targets: Sequence[tuple[Path, str]],
    against: Path,
    data: Path,
    *,
    sequences: int = 32,
    sequence: int = 512,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> list[EvaluationReport]:
    """Several (directory, activations) beside one pass of the source, which is exact float32.

    Memory: the states of every side (4 * B * S * H bytes each), one layer's attention or one expert, and in the end
    the output matrix with the logits of one sequence per side.
    Raises: RecipeError for an unknown kind of activations, CheckpointError for a directory that is not sound or not
    of the source's shape, CalibrationError for too little text.
    """
    began = time.monotonic()
    progress = on_progress or (lambda what, done, total: None)
    kinds = [_kind(kind) for _, kind in targets]
    with ExitStack() as stack, torch.inference_mode():
        source = stack.enter_context(Opened.of(against, device))
        others = [stack.enter_context(Opened.of(folder, device)) for folder, _ in targets]
        for other in others:
            _check_shape(source, other)
        tokens_BS = read_sequences(data, against, sequences, sequence, source.decoder.d.vocabulary)
        passes = [(source, exact), *((o, simulate(kind, o)) for o, kind in zip(others, kinds, strict=True))]
        states = [side.decoder.embed(tokens_BS) for side, _ in passes]
        layers = source.decoder.d.layers
        for layer in range(layers):
            for place, (side, activation) in enumerate(passes):
                side.decoder.step(layer, states[place], activation)
                progress("layers", layer * len(passes) + place + 1, layers * len(passes))
        scores = [Scores() for _ in others]
        logits = _logits([side for side, _ in passes], states)
        for b, (expected, *found) in enumerate(logits):
            for score, other_SV in zip(scores, found, strict=True):
                score.add(expected, other_SV, tokens_BS[b].to(expected.device))
            progress("sequences", b + 1, sequences)
    seconds = time.monotonic() - began
    return [
        summarize(
            score, checkpoint=other.name, against=source.name, data=data.name, sequence=sequence,
            activations=kind.value, seconds=seconds,
        )
        for score, other, kind in zip(scores, others, kinds, strict=True)
    ]  # fmt: skip


def _kind(name: str) -> Activations:
    if name not in list(Activations):
        raise RecipeError(f"activations {name!r}: expected one of {', '.join(Activations)}")
    return Activations(name)


def _check_shape(source: Opened, other: Opened) -> None:
    for field in SAME_TEXT:
        ours, theirs = getattr(other.decoder.d, field), getattr(source.decoder.d, field)
        if ours != theirs:
            raise CheckpointError(
                f"{other.name}: found {field} = {ours}, expected {theirs} as in {source.name}; "
                "give the checkpoint that it was quantized from"
            )


def _logits(sides: list[Opened], states: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Each sequence's logits from every side, float32 [S, V] each.

    Quantization leaves the output matrix as it is (R1: 3.7 GB as float32), so where the bytes agree it is loaded once.
    """
    if all(_same_output(sides[0], side) for side in sides[1:]):
        in_turn = torch.stack(states, 1).flatten(0, 1)  # every side's first sequence, then every side's second, ...
        states.clear()
        one_by_one = sides[0].decoder.logits(in_turn)
        return zip(*[one_by_one] * len(sides), strict=True)
    return zip(*(side.decoder.logits(s) for side, s in zip(sides, states, strict=True)), strict=True)


def _same_output(source: Opened, other: Opened) -> bool:
    if source.decoder.d.tied_head or other.decoder.d.tied_head:
        return False
    specs = [[s for name in OUTPUT for s in side.decoder.weights.inventory[name].tensors] for side in (source, other)]
    if [(s.name, s.dtype, s.shape) for s in specs[0]] != [(s.name, s.dtype, s.shape) for s in specs[1]]:
        return False
    return all(
        torch.equal(ours, theirs)
        for spec in specs[0]
        for ours, theirs in zip(source.reader.read_bytes(spec.name), other.reader.read_bytes(spec.name), strict=True)
    )
