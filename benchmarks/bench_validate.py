#!/usr/bin/env python3
"""Times a validation of one layer of DeepSeek-R1's size on a GPU (or, with --device cpu, on the CPU).

    python benchmarks/bench_validate.py [--experts 256] [--device cuda] [--folder DIR]

A random w4afp8 directory of one dense and one MoE layer (the dense parts and the vocabulary small, the experts R1's)
is written first, then proven without a source; each phase is timed.  One JSON line in results/validate.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness import MINIATURE, record
from w4afp8 import families, formats
from w4afp8.families._spec import PROJECTIONS, Expected, Role
from w4afp8.validate import validate

R1 = {
    "vocab_size": 1024, "hidden_size": 7168, "intermediate_size": 1024, "moe_intermediate_size": 2048,
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "num_experts_per_tok": 8,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256, "kv_lora_rank": 256, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
SHARD = 64  # experts a file
TARGET = formats.target("sglang_w4afp8")


def tensors_of(item: Expected) -> dict[str, Tensor]:
    """What one name stands for: random codes and scales of an expert, small numbers of everything else."""
    if item.role is Role.EXPERT:
        n, k = item.shape
        scale = (torch.rand(n, k // 128) * 0.01 + 0.005).bfloat16().float()
        return {item.name: torch.randint(-128, 128, (n, k // 2), dtype=torch.int8), f"{item.name}_scale_inv": scale}
    real = torch.randn(item.shape) * 0.02
    if not item.matrix:
        return {item.name: real if item.role is Role.ROUTER else real.add(1).bfloat16()}
    if item.role in (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT):
        blocks = [-(-size // 128) for size in item.shape]
        return {item.name: real.to(torch.float8_e4m3fn), f"{item.name}_scale_inv": torch.full(blocks, 0.9)}
    return {item.name: real.bfloat16()}


def shards(expected: dict[str, Expected]) -> Iterator[dict[str, Tensor]]:
    """The files' contents, made one at a time."""
    tensors: dict[str, Tensor] = {}
    for item in expected.values():
        tensors |= tensors_of(item)
        if len(tensors) >= SHARD * 6:
            yield tensors
            tensors = {}
    yield tensors


def write(folder: Path, experts: int) -> None:
    """The directory, as an engine would find it."""
    plain = json.loads((MINIATURE / "config.json").read_text())
    config: dict[str, Any] = plain | R1 | {"n_routed_experts": experts}
    config["quantization_config"] = TARGET.quantization_config(config)
    family = families.of(config)
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards(family.expected(family.dimensions(config))), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    stems = [family.expert(1, expert) for expert in range(experts)]
    names = [TARGET.input_scale.tensor_name(stem, p) for stem in stems for p in PROJECTIONS]
    save_file({name: torch.tensor([0.02]) for name in names}, folder / TARGET.input_scale.file, {"format": "pt"})
    weight_map |= dict.fromkeys(names, TARGET.input_scale.file)
    for file, content in {
        "model.safetensors.index.json": {"metadata": {"total_size": total + 4 * len(names)}, "weight_map": weight_map},
        "config.json": config,
        **TARGET.side_files(config),
    }.items():
        (folder / file).write_text(json.dumps(content))


class Phases:
    """Seconds of each phase, from when its progress first moves."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        self.began.setdefault(what, time.monotonic())

    def seconds(self, end: float) -> dict[str, float]:
        starts = [*self.began.values(), end]
        return {what: round(after - begin, 3) for (what, begin), after in zip(self.began.items(), starts[1:])}


def main() -> None:
    """Write, prove twice (the first run warms up), say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        write(Path(scratch), options.experts)
        validate(Path(scratch), device=options.device, sample=1)
        phases = Phases()
        report = validate(Path(scratch), device=options.device, on_progress=phases)
        seconds = phases.seconds(time.monotonic())
    (layer,) = report.layers
    record("validate", {
        "what": "one MoE layer of R1's size, no source", "experts": options.experts, "proven_by": report.proven_by,
        "passed": not [c.name for c in report.checks if c.problems and c.name in ("grouped GEMM", "fused layer")],
        "gemm_examined": report.check("grouped GEMM").examined, "gemm_error": layer.gemm, "fused_error": layer.fused,
        "values_s": seconds["values"], "experts_s": seconds["experts"], "all_s": report.seconds,
        "problems": [str(p)[:200] for p in report.problems][:5],
    })  # fmt: skip


if __name__ == "__main__":
    main()
