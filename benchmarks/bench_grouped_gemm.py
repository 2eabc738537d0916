#!/usr/bin/env python3
"""Times the grouped GEMM against the floor of the machine and, in the same run, against Humming.

    python benchmarks/bench_grouped_gemm.py [--shapes R1,EP8,TP8,OSS,DENSE] [--tokens 1,8,...] [--peer humming]
                                            [--sweep] [--out results.jsonl]

Each cell is a CUDA graph that cycles over several routings, so that no replay finds its weights in L2; the number is
the median of its replays.  Floor = max(bytes / read bandwidth, flops / `torch._scaled_mm` rate), both measured first.
Bytes: packed weights and scales of the experts hit, every row of x once per token, the bfloat16 output.  `--sweep`
times every schedule, not only the chosen one, and prints the best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from w4afp8.kernels import schedules, sm90

DEVICE = "cuda"
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Shape:
    """A GEMM of a layer; `routed` experts are drawn from, the first `experts` are here; top_k 0 is a dense layer."""

    name: str
    rows: int
    cols: int
    experts: int = 1
    routed: int = 1
    top_k: int = 0
    gathers: bool = False  # x is one row a token, not one a choice


MOE = {
    "R1": (7168, 2048, 256, 256, 8),
    "EP8": (7168, 2048, 32, 256, 8),
    "TP8": (7168, 256, 256, 256, 8),
    "OSS": (4096, 2048, 256, 256, 6),
}
DENSE = {
    "q_b": (24576, 1536),
    "kv_b": (32768, 512),
    "o": (7168, 16384),
    "dense_gate_up": (36864, 7168),
    "dense_down": (7168, 18432),
}
SHAPES = {
    name: [Shape(f"{name}.gate_up", 2 * i, h, e, r, k, True), Shape(f"{name}.down", h, i, e, r, k)]
    for name, (h, i, e, r, k) in MOE.items()
}
SHAPES["DENSE"] = [Shape(f"dense.{name}", n, k) for name, (n, k) in DENSE.items()]
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass
class Rows:
    """One routing: where each local expert's rows begin, and which token each row is."""

    offsets: Tensor
    tokens: Tensor
    hit: int
    distinct: int


def routings(shape: Shape, tokens: int) -> list[Rows]:
    """Several routings, uniform and without repeats within a token."""
    if shape.top_k == 0:
        offsets = torch.tensor([0, tokens], dtype=torch.int32, device=DEVICE)
        return [Rows(offsets, torch.arange(tokens, device=DEVICE), 1, tokens)]
    out = []
    for i in range(8 if tokens <= 64 else 4 if tokens <= 512 else 2):
        g = torch.Generator(device=DEVICE).manual_seed(1000 * tokens + i)
        ids = torch.rand((tokens, shape.routed), device=DEVICE, generator=g).topk(shape.top_k, dim=1).indices
        local = torch.where(ids < shape.experts, ids, shape.experts).flatten()
        counts = torch.bincount(local, minlength=shape.experts + 1)[: shape.experts]
        offsets = torch.zeros(shape.experts + 1, dtype=torch.int32, device=DEVICE)
        offsets[1:] = counts.cumsum(0)
        source = torch.argsort(local, stable=True)[: int(counts.sum())] // shape.top_k
        out.append(Rows(offsets, source, int((counts > 0).sum()), int(source.unique().numel())))
    return out


def time_us(calls: list[Callable[[], object]], replays: int = 15, target_us: float = 600.0) -> tuple[float, float]:
    """Median and spread (10th to 90th percentile) of one call, in a replayed graph that cycles over `calls`."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    begin.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    once = begin.elapsed_time(end) * 1e3 / len(calls)
    rounds = max(1, min(math.ceil(target_us / (once * len(calls))), 64 // len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(replays)]
    graph.replay()
    graph.replay()
    for a, b in events:
        a.record()
        graph.replay()
        b.record()
    torch.cuda.synchronize()
    each = sorted(a.elapsed_time(b) * 1e3 / (rounds * len(calls)) for a, b in events)
    return statistics.median(each), each[int(0.9 * replays)] - each[int(0.1 * replays)]


@triton.jit
def read(x, out, n, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """Nothing but loads: what a plain read of n words takes."""
    pid = tl.program_id(0)
    acc = tl.zeros([BLOCK], tl.int32)
    for i in range(pid * BLOCK * UNROLL, n, tl.num_programs(0) * BLOCK * UNROLL):
        for u in tl.static_range(UNROLL):
            acc ^= tl.load(x + i + u * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + pid, tl.sum(acc, 0))


def ceilings() -> dict[str, float]:
    """Read bandwidth in bytes/us and e4m3 rate in flop/us of this machine, now."""
    words = (4 << 30) // 4
    data = torch.empty(words, dtype=torch.int32, device=DEVICE)
    out = torch.empty(4096, dtype=torch.int32, device=DEVICE)
    for i in range(0, words, 1 << 28):
        data[i : i + (1 << 28)].random_()
    found = {}
    for mib in (16, 64, 256, 4096):
        n = (mib << 20) // 4
        parts = [data[i * n : (i + 1) * n] for i in range(min(32, words // n))]
        best = min(
            time_us(
                [lambda p=p, n=n, u=u, b=b, w=w, g=g: read[(132 * g,)](p, out, n, b, u, num_warps=w) for p in parts],
                replays=8,
            )[0]
            for g, b, u, w in ((2, 8192, 2, 16), (4, 4096, 2, 8))
        )
        found[f"read_{mib}MiB_us"] = best
        found["read_bytes_us"] = (mib << 20) / best
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16).to(FP8) for _ in range(2))
    one = torch.ones((), device=DEVICE)
    us, _ = time_us(
        [lambda: torch._scaled_mm(a, b.t(), out_dtype=torch.bfloat16, scale_a=one, scale_b=one, use_fast_accum=True)]
    )
    found["fp8_flop_us"] = 2 * n**3 / us
    return found


def floor_us(shape: Shape, rows: Rows, machine: dict[str, float]) -> tuple[float, str, float]:
    """The least time, what binds, and the bytes."""
    t = len(rows.tokens)
    moved = rows.hit * shape.rows * shape.cols * (0.5 + 2 / 128) + t * shape.rows * 2
    moved += (rows.distinct if shape.gathers else t) * shape.cols
    by_bytes = moved / machine["read_bytes_us"]
    by_flops = 2 * t * shape.rows * shape.cols / machine["fp8_flop_us"]
    return max(by_bytes, by_flops), "bytes" if by_bytes > by_flops else "flops", moved


def weights(shape: Shape) -> tuple[Tensor, Tensor]:
    """Random sm90 bytes (every byte is two codes of -8..7) and group scales."""
    tiles = (shape.experts, shape.rows // 64, shape.cols // 128)
    w = torch.empty((*tiles, 4096), dtype=torch.uint8, device=DEVICE)
    for e in range(shape.experts):
        w[e].random_(0, 256)
    return w, ((torch.rand((*tiles, 64), device=DEVICE) + 0.5) * 0.01).bfloat16()


def copies(shape: Shape) -> int:
    """How many weights to cycle over so that L2 holds none: dense layers are small."""
    return 1 if shape.experts > 1 else max(1, math.ceil(400e6 / (shape.rows * shape.cols / 2)))


def ours(shape: Shape, sweep: bool, w: list[tuple[Tensor, Tensor]], rs: list[Rows]) -> list[dict[str, object]]:
    """Time the chosen schedule, or every one that runs."""
    problem = schedules.Problem(len(rs[0].tokens), shape.experts, shape.rows, shape.cols)
    rows = [r for r in schedules.ROWS if not r.refusals(problem)] if sweep else [schedules.choose(problem)]
    if sweep:  # leave out what cannot win: tiles far larger or smaller than the rows an expert has
        mean = len(rs[0].tokens) / rs[0].hit
        rows = [r for r in rows if r.max_tokens >= min(mean / 4, 96) and (r.max_tokens <= max(mean * 3, 16))]
    inputs = []
    for r in rs:
        x = torch.randn((len(r.tokens), shape.cols), device=DEVICE, dtype=torch.bfloat16).to(FP8)
        inputs.append((x, torch.rand(len(x), device=DEVICE), r.offsets if shape.top_k else None))
    found = []
    for row in rows:
        n = max(len(inputs), len(w))
        calls = [
            lambda i=i, row=row: sm90.grouped_gemm(
                inputs[i % len(inputs)][0],
                inputs[i % len(inputs)][1],
                *w[i % len(w)],
                inputs[i % len(inputs)][2],
                torch.bfloat16,
                row,
            )
            for i in range(n)
        ]
        us, spread = time_us(calls)
        found.append({"kernel": row.kernel, "split": row.split_groups, "us": us, "spread_us": spread})
    return found


def main() -> None:
    """Parse, measure the ceilings, walk the cells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default="R1,EP8,TP8,OSS,DENSE")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--peer", choices=["none", "humming"], default="none")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds; later cells are left out")
    options = parser.parse_args()
    sink = options.out.open("a") if options.out else None

    def emit(record: dict[str, object]) -> None:
        line = json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()})
        if sink:
            print(line, file=sink, flush=True)

    begin = time.monotonic()
    machine = ceilings()
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    emit({"record": "machine", **about, **machine})
    print({k: round(v, 1) for k, v in machine.items()}, flush=True)
    print(
        f"{'cell':24}{'rows/hit':>9}{'floor':>9}{'ours':>9}{'x floor':>8}{'peer':>9}{'ratio':>7}  schedule", flush=True
    )
    for name in options.shapes.split(","):
        for shape in SHAPES[name]:
            w = [weights(shape) for _ in range(copies(shape))]
            peer = None
            if options.peer == "humming":
                from bench_kernel_peers import Humming

                peer = Humming(shape, copies(shape))
            for tokens in map(int, options.tokens.split(",")):
                if time.monotonic() - begin > options.budget:
                    print(f"{shape.name} M={tokens}: left out, the budget is spent")
                    continue
                rs = routings(shape, tokens)
                if not len(rs[0].tokens):
                    continue
                floors = [floor_us(shape, r, machine) for r in rs]
                floor, moved = statistics.mean(f[0] for f in floors), statistics.mean(f[2] for f in floors)
                found = ours(shape, options.sweep, w, rs)
                best = min(found, key=lambda f: f["us"])
                theirs = peer.time(tokens, rs, time_us) if peer else {}
                mean = len(rs[0].tokens) / rs[0].hit
                emit(
                    {
                        "record": "cell",
                        "shape": shape.name,
                        "tokens": tokens,
                        "rows": len(rs[0].tokens),
                        "hit": rs[0].hit,
                        "floor_us": floor,
                        "bound": floors[0][1],
                        "bytes": moved,
                        **best,
                        "x_floor": best["us"] / floor,
                        "GB_s": moved / best["us"] / 1e3,
                        "TFLOP_s": 2 * len(rs[0].tokens) * shape.rows * shape.cols / best["us"] / 1e6,
                        **theirs,
                        "sweep": found if options.sweep else None,
                        **about,
                    }
                )
                ratio = theirs["humming_us"] / best["us"] if theirs else float("nan")
                others = " ".join(f"{f['kernel']}/{f['split']}:{f['us']:.1f}" for f in found) if options.sweep else ""
                print(
                    f"{shape.name + ' M=' + str(tokens):24}{mean:9.1f}{floor:9.1f}{best['us']:9.1f}"
                    f"{best['us'] / floor:8.2f}{theirs.get('humming_us', float('nan')):9.1f}{ratio:7.2f}"
                    f"  {best['kernel']}/{best['split']} {others}",
                    flush=True,
                )
            del w, peer
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
