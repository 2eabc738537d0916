"""Drives Humming (pip install humming-kernels) on the cells of bench_grouped_gemm.py, through its public entry points.

Holds no code of the peer: `HummingLayer`, `humming.ops.process_input` and its heuristic tuner's choice for the routed
row count, in both of its modes; the faster of the two is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"
WEIGHT = {"quant_method": "humming", "dtype": "int4", "group_size": 128, "scale_dtype": "bfloat16"}
INPUT = {"quant_method": "humming", "dtype": "float8e4m3"}


def _aligned(rows: Any, experts: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row ids sorted by expert, every expert padded to a multiple of `block`, as the indexed mode wants them."""
    counts = rows.offsets.diff().long()
    blocks = (counts + block - 1) // block
    first = torch.cumsum(blocks * block, 0) - blocks * block
    total = int((blocks * block).sum())
    t = int(counts.sum())
    ids = torch.full((max(total, block),), t, dtype=torch.int32, device=DEVICE)
    expert = torch.repeat_interleave(torch.arange(experts, device=DEVICE), counts)
    position = torch.arange(t, device=DEVICE) - rows.offsets[:-1].long()[expert]
    ids[first[expert] + position] = torch.arange(t, device=DEVICE, dtype=torch.int32)
    experts_of = torch.repeat_interleave(torch.arange(experts, device=DEVICE), blocks).int()
    return ids, experts_of, torch.tensor([total], dtype=torch.int32, device=DEVICE)


class Humming:
    """One weight (or several of a dense shape) in Humming's own layout."""

    def __init__(self, shape: Any, copies: int) -> None:
        from humming.layer import HummingLayer

        self.shape, self.layers = shape, []
        for _ in range(copies):
            kind = {"num_experts": shape.experts} if shape.experts > 1 else {}
            with torch.device(DEVICE):
                layer = HummingLayer(
                    shape_n=shape.rows,
                    shape_k=shape.cols,
                    weight_config=dict(WEIGHT),
                    input_config=dict(INPUT),
                    torch_dtype=torch.bfloat16,
                    **kind,
                )
            layer = layer.cuda()
            lead = (shape.experts,) if shape.experts > 1 else ()
            weight = torch.empty((*lead, shape.rows, shape.cols // 8), dtype=torch.int32, device=DEVICE)
            for part in weight.split(16) if lead else (weight,):
                part.random_(-(2**31), 2**31 - 1)
            scale = ((torch.rand((*lead, shape.rows, shape.cols // 128), device=DEVICE) + 0.5) * 0.01).bfloat16()
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
            layer.transform()
            self.layers.append(layer)
            del weight, scale
            torch.cuda.empty_cache()

    def time(self, tokens: int, rs: list[Any], time_us: Callable[..., tuple[float, float]]) -> dict[str, object]:
        """Median of the faster mode, and its tile."""
        found = {}
        modes = ("indexed", "grouped_contiguous") if self.shape.experts > 1 else ("dense",)
        for mode in modes:
            try:
                found[mode] = self._mode(mode, rs, time_us)
            except Exception as error:  # a peer that cannot run a cell is a result, not a failure of ours
                said = f"{type(error).__name__}: {str(error)[:200]}"
                print(f"humming {self.shape.name} M={tokens} {mode}: {said}", flush=True)
        if not found:
            return {}
        mode = min(found, key=lambda m: found[m][0])
        return {"humming_us": found[mode][0], "humming_mode": mode, "humming_tile": found[mode][1]}

    def _mode(self, mode: str, rs: list[Any], time_us: Callable[..., tuple[float, float]]) -> tuple[float, str]:
        from humming import ops
        from humming.tune import get_heuristics_config

        config = self.layers[0].humming_config
        calls, tile = [], ""
        kind = {"gemm_type": mode} if mode != "dense" else {}
        for i in range(max(len(rs), len(self.layers))):
            r, layer = rs[i % len(rs)], self.layers[i % len(self.layers)]
            count = len(r.tokens)
            tuned = next(c for low, high, c in get_heuristics_config(config, device=0, **kind) if low < count <= high)
            tile = f"{tuned['mma_type']} {tuned['block_shape']}"
            x = torch.randn((count, self.shape.cols), device=DEVICE, dtype=torch.bfloat16)
            q, s1, s2 = ops.process_input(
                x,
                quant_mode=config.input_quant_mode.value,
                quant_dtype=str(config.a_dtype),
                group_scale_dtype=str(config.as_dtype),
            )
            args: dict[str, Any] = {
                "inputs": q,
                "input_scale": s1 if s1 is not None else s2,
                "outputs": torch.empty((count, self.shape.rows), device=DEVICE, dtype=torch.bfloat16),
                "valid_shape_m": count,
                "compute_config": json.dumps(kind),
                "tuning_config": json.dumps([[0, 1 << 30, tuned]]),
            }
            if mode == "indexed":
                ids, experts, padded = _aligned(r, self.shape.experts, tuned["block_shape"][0])
                args |= {"sorted_ids": ids, "expert_ids": experts, "num_tokens_padded": padded, "top_k": 1}
            elif mode == "grouped_contiguous":
                args["expert_layout"] = r.offsets.long()
            calls.append(lambda layer=layer, args=args: layer(**args))
        return time_us(calls)[0], tile
