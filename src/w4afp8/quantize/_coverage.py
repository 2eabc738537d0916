"""A calibration pass over the source model that only counts: does every expert see enough?"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from w4afp8.errors import CalibrationError, raise_all
from w4afp8.model.decoder import Decoder


def count_tokens(decoder: Decoder, tokens_BS: Tensor, progress: Callable[[int, int], None]) -> dict[int, list[int]]:
    """Tokens per expert of every MoE layer, MTP layers included: layer -> E counts.

    `progress` is told the layer and how many there are.
    """
    d = decoder.d
    states = decoder.embed(tokens_BS)
    counts: dict[int, list[int]] = {}
    for layer in range(d.all_layers):
        if d.is_mtp(layer):
            states = decoder.mtp_input(layer, tokens_BS[:, layer - d.layers :], states)
        last = layer == d.all_layers - 1
        routing = decoder.choose(layer, states) if last else decoder.step(layer, states)
        if routing is not None:
            counts[layer] = routing.counts(d.experts).tolist()
        progress(layer + 1, d.all_layers)
    return counts


def check_coverage(counts: dict[int, list[int]], least: int, allow_cold: bool) -> None:
    """Raises: CalibrationError naming every expert below `least` tokens, unless cold experts are allowed."""
    if allow_cold:
        return
    problems = [
        f"layer {layer}: {len(cold)} of {len(found)} experts saw fewer than {least} tokens: "
        + ", ".join(f"expert {e} saw {found[e]}" for e in cold[:6])
        + (" ..." if len(cold) > 6 else "")
        for layer, found in counts.items()
        if (cold := [e for e, n in enumerate(found) if n < least])
    ]
    raise_all(
        problems,
        CalibrationError,
        "the calibration text reaches too few experts; give more or broader text (calibration.tokens, --data), "
        "or accept it with --allow-cold-experts",
    )
