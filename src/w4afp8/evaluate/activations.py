"""What an engine does to the inputs of an expert's two GEMMs, simulated."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor

from w4afp8.evaluate.opened import Opened
from w4afp8.model.decoder import Activation, exact
from w4afp8.numerics import fp8


class Activations(StrEnum):
    """How activations become FP8."""

    TOKEN = "token"  # a scale per token, computed as it passes: vLLM, and SGLang's dynamic path
    STATIC = "static"  # one calibrated scale per layer and GEMM: SGLang's w4afp8
    NONE = "none"  # as they are: what the weights alone cost


def simulate(kind: Activations, checkpoint: Opened) -> Activation:
    """The function that the decoder calls.  Raises: CheckpointError for static scales that are not there."""
    if kind is Activations.NONE:
        return exact
    if kind is Activations.TOKEN:
        return _per_token
    known: dict[int, dict[str, float]] = {}
    d = checkpoint.decoder.d
    for layer in range(d.layers):
        if d.is_moe(layer):
            known[layer] = checkpoint.static_scales(layer)

    def _static(layer: int, site: str, x_TK: Tensor) -> Tensor:
        return fp8.round_static(x_TK, known[layer][site])

    return _static


def _per_token(layer: int, site: str, x_TK: Tensor) -> Tensor:
    return fp8.round_tokens(x_TK)
