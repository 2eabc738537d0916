#!/usr/bin/env python3
"""Times the fused MoE layer against the floor of its bytes or flops, and each of its parts.

    python benchmarks/bench_kernel_layer.py [--shapes R1,EP8,TP8,OSS] [--tokens 1,8,...] [--ways chosen,several,n8]
                                            [--out results.jsonl]

Method as in bench_grouped_gemm.py.  The layer's floor: both weights of the experts hit and the hidden state in and
out, or both GEMMs at the measured e4m3 rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from bench_grouped_gemm import DEVICE, MOE, SHAPES, TOKENS, ceilings, time_us, weights
from w4afp8.kernels import layers, sm90
from w4afp8.kernels.calls import MoECall

RECORDED = Path(__file__).parent / "results" / "kernels-peer-layers.json"  # peers' layers on an H200, same method


def main() -> None:
    """Parse, measure the ceilings, walk the cells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default=",".join(MOE))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ways", default="chosen")
    options = parser.parse_args()
    ways: dict[str, layers.OneLaunch | bool] = {"chosen": True, "several": False, **{r.kernel: r for r in layers.ROWS}}
    peers = json.loads(RECORDED.read_text())["humming_us"]
    machine = ceilings()
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    print(f"{'layer':14}{'way':>8}{'floor':>9}{'ours':>9}{'x floor':>8}{'humming, recorded':>18}{'ratio':>7}")
    for name in options.shapes.split(","):
        hidden, inner, experts, routed, top_k = MOE[name]
        packed: list[torch.Tensor] = []
        torch.cuda.empty_cache()
        packed += [t for shape in SHAPES[name] for t in weights(shape)]
        weight_bytes = sum(t.numel() * t.element_size() for t in packed) / experts
        for tokens in map(int, options.tokens.split(",")):
            calls, floors = [], []
            for i in range(8 if tokens <= 64 else 4 if tokens <= 512 else 2):
                g = torch.Generator(device=DEVICE).manual_seed(1000 * tokens + i)
                chance = torch.rand((tokens, routed), device=DEVICE, generator=g)
                router, ids = chance.topk(top_k, dim=1)
                x = torch.randn((tokens, hidden), device=DEVICE, dtype=torch.bfloat16)
                local = ids[ids < experts]
                by_bytes = (local.unique().numel() * weight_bytes + 4 * x.numel()) / machine["read_bytes_us"]
                floors.append(max(by_bytes, 6 * local.numel() * inner * hidden / machine["fp8_flop_us"]))
                calls.append(MoECall(x, ids.int(), router, *packed, layout="sm90", routed_experts=routed))
            for way in options.ways.split(","):
                row = ways[way]
                if isinstance(row, layers.OneLaunch) and tokens * top_k > layers.MAX_PAIRS:
                    continue
                us, spread = time_us([partial(sm90.fused_moe, call, row) for call in calls])
                floor, theirs = statistics.mean(floors), peers.get(name, {}).get(str(tokens))
                record = {
                    "record": "layer",
                    "shape": name,
                    "tokens": tokens,
                    "way": way,
                    "floor_us": floor,
                    "us": us,
                    "spread_us": spread,
                    "x_floor": us / floor,
                    "humming_recorded_us": theirs,
                    **about,
                }
                if options.out:
                    with options.out.open("a") as sink:
                        print(
                            json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()}),
                            file=sink,
                        )
                beside = "" if theirs is None else f"{theirs:18.1f}{theirs / us:7.2f}"
                print(
                    f"{name + ' M=' + str(tokens):14}{way:>8}{floor:9.1f}{us:9.1f}{us / floor:8.2f}{beside}", flush=True
                )


if __name__ == "__main__":
    main()
