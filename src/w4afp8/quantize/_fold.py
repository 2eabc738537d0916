"""Folding a scale out of the norm before the experts into everything that reads it.

The norm's weight is divided by s; the columns of every consumer (routed and shared gate and up, the router) are
multiplied by it.  With powers of two the norm and the router stay exact in bf16 and the shared expert nearly so in FP8
(only codes that fall below e4m3's normal range are rounded again).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8.formats._spec import BlockWeight, PlainWeight, Weight
from w4afp8.model.decoder import Decoder
from w4afp8.numerics import fp8
from w4afp8.quantize._method import Fold


@dataclass(frozen=True, slots=True)
class FoldedTensors:
    """Tensors of a layer that are no longer the source's, by full name, in their stored dtypes."""

    tensors: dict[str, Tensor]
    effective_scale: Tensor | None = None  # what the stored norm was really divided by, float32 [H]


def apply_fold(decoder: Decoder, layer: int, fold: Fold) -> FoldedTensors:
    """Fold into norm, router and shared expert; the routed experts are folded while they are quantized.

    The consumers get what the *stored* norm lost, so the norm's own rounding to bf16 cancels.
    """
    weights, prefix = decoder.weights, f"model.layers.{layer}."
    name = f"{prefix}post_attention_layernorm.weight"
    norm = weights.vector(name)
    dtype = weights.stored_dtype(name)
    stored = (norm / fold.scale_H).to(dtype)
    effective = torch.where(stored != 0, norm / stored.float(), torch.ones_like(norm))
    tensors = {name: stored}
    consumers = (f"{prefix}mlp.gate", f"{prefix}mlp.shared_experts.gate_proj", f"{prefix}mlp.shared_experts.up_proj")
    for stem in consumers:
        packed = weights.packed(f"{stem}.weight")
        folded = fold_columns(packed, effective)
        item = weights.inventory[f"{stem}.weight"]
        assert item.format is not None
        tensors |= {stem + suffix: part for suffix, part in item.format.pack(folded).items()}
    return FoldedTensors(tensors, effective)


def fold_columns(packed: Weight, scale_K: Tensor) -> Weight:
    """A matrix with its columns multiplied, in the format it came in.

    FP8 blocks keep their scale times a power of two, so a power-of-two fold moves only exponents.
    """
    if isinstance(packed, BlockWeight):
        codes_NK = packed.codes_NK.to(scale_K.device).float() * scale_K  # e4m3 times s: not yet e4m3
        n, k = codes_NK.shape
        amax_RC = fp8.block_amax(codes_NK)
        shift_RC = torch.exp2(torch.ceil(torch.log2(amax_RC / fp8.LARGEST)))
        shift_RC = torch.where(amax_RC > 0, shift_RC, torch.ones_like(shift_RC))
        codes = fp8.encode(codes_NK / fp8.expand_blocks(shift_RC, n, k))
        return BlockWeight(codes, packed.scale_RC.to(scale_K.device) * shift_RC)
    assert isinstance(packed, PlainWeight)
    return PlainWeight((packed.real_NK.to(scale_K.device).float() * scale_K).to(packed.real_NK.dtype))


def power_of_two(scale: Tensor) -> Tensor:
    """The nearest powers of two, by ratio."""
    return torch.exp2(torch.round(torch.log2(scale)))
