"""Random problems: routings, weights and activations, the same for the same seed and device.

Letters: M tokens, T rows of x sorted by expert, E experts, N outputs, K inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.checks import FP8
from w4afp8.kernels.layout import TILE_BYTES, TILE_COLS, TILE_ROWS, store_codes
from w4afp8.measure.shapes import Gemm, Layer

BEYOND_L2_BYTES = 400e6  # of weights that a replay cycles over; L2 holds 60 MB


@dataclass(frozen=True, slots=True)
class Weight:
    """One op's weight: sm90 bytes (any byte is two codes of -8..7) and bfloat16 group scales."""

    codes: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """One draw of the router: where each local expert's rows begin, and which token each row is."""

    offsets: Tensor | None  # int32 [E + 1]; None for a dense layer
    tokens: Tensor  # int64 [T]
    hit: int
    distinct: int

    @property
    def rows(self) -> int:
        return len(self.tokens)


def draws(tokens: int) -> int:
    """How many routings a cell cycles over: more where one of them fits L2."""
    return 8 if tokens <= 64 else 4 if tokens <= 512 else 2


def choices(routed: int, top_k: int, tokens: int, draw: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The router's weights and ids [M, top_k]: uniform, no expert twice in a token."""
    g = torch.Generator(device=device).manual_seed(1000 * tokens + draw)
    weights, ids = torch.rand((tokens, routed), device=device, generator=g).topk(top_k, dim=1)
    return weights, ids.int()


def routings(gemm: Gemm, tokens: int, device: torch.device) -> list[Routing]:
    """Several draws; those that send nothing to this rank's experts are left out."""
    if gemm.top_k == 0:
        return [Routing(None, torch.arange(tokens, device=device), 1, tokens)]
    found = []
    for draw in range(draws(tokens)):
        _, ids = choices(gemm.routed, gemm.top_k, tokens, draw, device)
        local = torch.where(ids < gemm.experts, ids, gemm.experts).flatten()
        counts = torch.bincount(local, minlength=gemm.experts + 1)[: gemm.experts]
        offsets = torch.zeros(gemm.experts + 1, dtype=torch.int32, device=device)
        offsets[1:] = counts.cumsum(0)
        source = torch.argsort(local, stable=True)[: int(counts.sum())] // gemm.top_k
        if len(source):
            found.append(Routing(offsets, source, int((counts > 0).sum()), _different(source)))
    return found


def weight(gemm: Gemm, device: torch.device) -> Weight:
    """Random codes of one GEMM's experts."""
    tiles = (gemm.experts, gemm.rows // TILE_ROWS, gemm.cols // TILE_COLS)
    codes = torch.empty((*tiles, TILE_BYTES), dtype=torch.uint8, device=device)
    for e in range(gemm.experts):
        if gemm.least == -8:
            codes[e].random_(0, 256)
        else:
            drawn = torch.randint(gemm.least, 8, (1, gemm.rows, gemm.cols), dtype=torch.int8, device=device)
            codes[e] = store_codes(drawn)[0]
    return Weight(codes, ((torch.rand((*tiles, TILE_ROWS), device=device) + 0.5) * 0.01).bfloat16())


def copies(gemm: Gemm) -> int:
    """How many weights to cycle over so that L2 holds none: dense layers are small."""
    return 1 if gemm.experts > 1 else max(1, math.ceil(BEYOND_L2_BYTES / (gemm.rows * gemm.cols / 2)))


def weights(gemm: Gemm, device: torch.device) -> list[Weight]:
    """As many as `copies` says."""
    return [weight(gemm, device) for _ in range(copies(gemm))]


def gemm_calls(weights: list[Weight], routings: list[Routing], cols: int) -> list[GemmCall]:
    """One call per routing or weight, whichever are more; e4m3 with a scale per token, dense as `linear` calls it.

    The weights are ready, as in serving.
    """
    device = weights[0].codes.device
    inputs = []
    for routing in routings:
        x = torch.randn((routing.rows, cols), device=device, dtype=torch.bfloat16).to(FP8)
        inputs.append((x, torch.rand(routing.rows, device=device), routing.offsets))
    calls = []
    for i in range(max(len(inputs), len(weights))):
        (x, scale, offsets), w = inputs[i % len(inputs)], weights[i % len(weights)]
        calls.append(GemmCall(x, scale, w.codes, w.scale, offsets, torch.bfloat16, "sm90", weights_ready=True))
    return calls


def layer_calls(layer: Layer, gate_up: Weight, down: Weight, tokens: int) -> list[MoECall]:
    """One call of the whole layer per draw of the router."""
    device = gate_up.codes.device
    calls = []
    for draw in range(draws(tokens)):
        router, ids = choices(layer.routed, layer.top_k, tokens, draw, device)
        x = torch.randn((tokens, layer.hidden), device=device, dtype=torch.bfloat16)
        packed = gate_up.codes, gate_up.scale, down.codes, down.scale
        calls.append(MoECall(x, ids, router, *packed, layout="sm90", routed_experts=layer.routed))
    return calls


def local_counts(call: MoECall) -> tuple[int, int]:
    """Choices that fall on this rank's experts, and how many of those are hit."""
    local = call.topk_ids[call.topk_ids < call.w13.shape[0]]
    return local.numel(), _different(local)


def _different(values: Tensor) -> int:
    return len(torch.bincount(values.long()).nonzero()) if values.numel() else 0
