"""Humming, driven through its public entry points: `HummingLayer`, `process_input`, its own tuner's choice.

GEMMs run in both of its modes and the faster one counts.  Weights that hold a code -8 are its int4; without one they
are signs and magnitudes, its float4e0m3, into which it converts such weights itself.  It has no layer of its own: the
layer here is its two GEMMs between this package's routing, SwiGLU and weighted sum, and the sorting that its indexed
mode needs is done beforehand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from w4afp8.kernels import reference
from w4afp8.kernels.calls import MoECall
from w4afp8.kernels.checks import FP8
from w4afp8.measure.cells import PeerTime
from w4afp8.measure.data import Routing
from w4afp8.measure.peers import Peer
from w4afp8.measure.shapes import Gemm, Layer
from w4afp8.measure.timing import Call, Timer, Timing

WEIGHT = {"quant_method": "humming", "group_size": 128, "scale_dtype": "bfloat16"}
DTYPES = {-8: "int4", -7: "float4e0m3"}  # by the least code; any four bits are a code of either
INPUT = {"quant_method": "humming", "dtype": "float8e4m3"}
DEVICE = "cuda"
ABREAST = 3  # modes prepared at once, each compiles its tiles side by side
GROUPED = ("indexed", "grouped_contiguous")

log = logging.getLogger(__name__)


def _version() -> str | None:
    try:
        return metadata.version("humming-kernels") if find_spec("humming") else None
    except metadata.PackageNotFoundError:  # another package of that name
        return None


def _weight(gemm: Gemm) -> Any:
    """Random codes and scales of one GEMM, in Humming's layout."""
    from humming.layer import HummingLayer

    kind = {"num_experts": gemm.experts} if gemm.experts > 1 else {}
    with torch.device(DEVICE):
        layer = HummingLayer(
            shape_n=gemm.rows, shape_k=gemm.cols, weight_config={**WEIGHT, "dtype": DTYPES[gemm.least]},
            input_config=dict(INPUT),
            torch_dtype=torch.bfloat16, **kind,
        )  # fmt: skip
    layer = layer.cuda()
    lead = (gemm.experts,) if gemm.experts > 1 else ()
    weight = torch.empty((*lead, gemm.rows, gemm.cols // 8), dtype=torch.int32, device=DEVICE)
    for part in weight if lead else (weight,):
        part.random_(-(2**31), 2**31 - 1)
    scale = ((torch.rand((*lead, gemm.rows, gemm.cols // 128), device=DEVICE) + 0.5) * 0.01).bfloat16()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    layer.transform()
    del weight, scale
    torch.cuda.empty_cache()
    return layer


def _modes(gemm: Gemm) -> tuple[str, ...]:
    return GROUPED if gemm.experts > 1 else ("dense",)


def _config(mode: str) -> str:
    return json.dumps({"gemm_type": mode} if mode != "dense" else {})


def _tile(layer: Any, mode: str, count: int) -> dict[str, Any]:
    """What Humming's tuner takes for so many rows."""
    from humming.tune import get_heuristics_config

    kind = {"gemm_type": mode} if mode != "dense" else {}
    ranges = get_heuristics_config(layer.humming_config, device=0, **kind)
    found: dict[str, Any] = next(c for low, high, c in ranges if low < count <= high)
    return found


def _arguments(
    mode: str, gemm: Gemm, tile: dict[str, Any], q: Tensor, scale: Tensor, offsets: Tensor | None, count: int
) -> dict[str, Any]:
    """Of one product of `count` rows of q that are sorted by expert."""
    arguments: dict[str, Any] = {
        "inputs": q,
        "input_scale": scale,
        "outputs": torch.empty((len(q), gemm.rows), device=DEVICE, dtype=torch.bfloat16),
        "valid_shape_m": count,
        "compute_config": _config(mode),
        "tuning_config": json.dumps([[0, 1 << 30, tile]]),
    }
    if mode == "indexed" and offsets is not None:
        ids, experts, padded = _aligned(offsets, gemm.experts, tile["block_shape"][0])
        arguments |= {"sorted_ids": ids, "expert_ids": experts, "num_tokens_padded": padded, "top_k": 1}
    elif mode == "grouped_contiguous" and offsets is not None:
        arguments["expert_layout"] = offsets.long()
    return arguments


def _aligned(offsets: Tensor, experts: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row ids sorted by expert, every expert padded to a multiple of `block`, as the indexed mode wants them."""
    device = offsets.device
    counts = offsets.diff().long()
    blocks = (counts + block - 1) // block
    first = torch.cumsum(blocks * block, 0) - blocks * block
    total, t = int((blocks * block).sum()), int(counts.sum())
    ids = torch.full((max(total, block),), t, dtype=torch.int32, device=device)
    expert = torch.repeat_interleave(torch.arange(experts, device=device), counts)
    position = torch.arange(t, device=device) - offsets[:-1].long()[expert]
    ids[first[expert] + position] = torch.arange(t, device=device, dtype=torch.int32)
    experts_of = torch.repeat_interleave(torch.arange(experts, device=device), blocks).int()
    return ids, experts_of, torch.tensor([total], dtype=torch.int32, device=device)


def _fastest(found: dict[str, tuple[Timing, str]]) -> PeerTime | None:
    if not found:
        return None
    mode = min(found, key=lambda m: found[m][0].us)
    timing, tile = found[mode]
    return PeerTime("humming", timing.us, timing.spread_us, f"{mode} {tile}".strip())


def _quantized(config: Any, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Random x in e4m3 and its scales, by Humming's own quantizer."""
    from humming import ops

    x = torch.randn((rows, cols), device=DEVICE, dtype=torch.bfloat16)
    q, s1, s2 = ops.process_input(
        x, quant_mode=config.input_quant_mode.value, quant_dtype=str(config.a_dtype),
        group_scale_dtype=str(config.as_dtype),
    )  # fmt: skip
    return q, s1 if s1 is not None else s2


def _prepare(problems: Mapping[Gemm, Sequence[int]]) -> int:
    """Into Humming's cache on disk: the GPU is used for what makes the configurations, then only processors."""
    from humming.kernel.humming import HummingKernel

    wanted: list[tuple[str, str, str]] = []
    for gemm, counts in problems.items():
        layer = _weight(gemm)
        _quantized(layer.humming_config, 1, gemm.cols)
        for mode in _modes(gemm):
            tiles = {json.dumps(_tile(layer, mode, count)): None for count in counts}
            each = [[0, 1 << 30, json.loads(tile)] for tile in tiles]
            wanted.append((layer.humming_config.to_str(), _config(mode), json.dumps(each)))
        del layer

    def compiled(one: tuple[str, str, str]) -> bool:
        try:
            HummingKernel.prepare_kernels(*one, device=0)
        except Exception as error:  # it will be said again where it is timed
            log.warning("humming: %s", error)
            return False
        return True

    with ThreadPoolExecutor(ABREAST) as pool:
        return sum(pool.map(compiled, wanted))


class _Gemm:
    """One weight, or several of a dense layer."""

    def __init__(self, gemm: Gemm, copies: int) -> None:
        self.gemm, self.layers = gemm, [_weight(gemm) for _ in range(copies)]

    def time(self, tokens: int, routings: Sequence[Routing], clock: Timer) -> PeerTime | None:
        found = {}
        for mode in _modes(self.gemm):
            try:
                calls, tile = self._calls(mode, routings)
                found[mode] = (clock(calls), tile)
            except Exception as error:  # a peer that cannot run a cell is a result, not a failure of ours
                log.warning("humming %s M=%d %s: %s", self.gemm.name, tokens, mode, error)
        return _fastest(found)

    def _calls(self, mode: str, routings: Sequence[Routing]) -> tuple[list[Call], str]:
        calls: list[Call] = []
        for i in range(max(len(routings), len(self.layers))):
            r, layer = routings[i % len(routings)], self.layers[i % len(self.layers)]
            tile = _tile(layer, mode, r.rows)
            q, scale = _quantized(layer.humming_config, r.rows, self.gemm.cols)
            calls.append(partial(layer, **_arguments(mode, self.gemm, tile, q, scale, r.offsets, r.rows)))
        return calls, f"{tile['mma_type']} {tile['block_shape']}"


class _Layer:
    """Two weights and what stands between them."""

    def __init__(self, layer: Layer) -> None:
        self.gemms = layer.gemms
        self.weights = [_weight(gemm) for gemm in layer.gemms]

    def time(self, calls: Sequence[MoECall], clock: Timer) -> PeerTime | None:
        found = {}
        for mode in GROUPED:
            try:
                found[mode] = (clock([self._call(mode, call) for call in calls]), "")
            except Exception as error:  # as above
                log.warning("humming layer M=%d %s: %s", len(calls[0].x), mode, error)
        return _fastest(found)

    def _call(self, mode: str, call: MoECall) -> Call:
        """One layer, its buffers and its sorting made beforehand."""
        experts, tokens, top_k = self.gemms[0].experts, *call.topk_ids.shape
        pairs = tokens * top_k
        order, offsets64 = reference.sort_by_expert(call.topk_ids, call.expert_begin, experts)
        count, offsets = max(1, len(order)), offsets64.int()
        arguments, quantized = [], []
        for gemm, weight in zip(self.gemms, self.weights):
            q = torch.zeros((pairs, gemm.cols), device=DEVICE, dtype=torch.uint8).view(FP8)
            scale = torch.zeros(-(-pairs // 4) * 4, device=DEVICE)[:pairs]
            tile = _tile(weight, mode, count)
            arguments.append(_arguments(mode, gemm, tile, q, scale.view(-1, 1), offsets, count))
            quantized.append((q, scale))
        rows = torch.empty(pairs, dtype=torch.int32, device=DEVICE)
        own_offsets, out = torch.empty_like(offsets), torch.empty_like(call.x)
        kernels = torch.ops.w4afp8_sm90

        def run() -> None:
            q_rows = *quantized[0], rows, own_offsets
            kernels.route_quantize(call.x, None, call.topk_ids, call.expert_begin, *q_rows)
            self.weights[0](**arguments[0])
            kernels.swiglu_quantize(arguments[0]["outputs"], own_offsets, None, *quantized[1], None, 1.0, 0.0)
            self.weights[1](**arguments[1])
            kernels.combine(arguments[1]["outputs"], rows, call.topk_weights, 1.0, out)

        return run


PEER = Peer("humming", "pip install humming-kernels", _version, _Gemm, _Layer, _prepare)
