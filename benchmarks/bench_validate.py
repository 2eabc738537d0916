#!/usr/bin/env python3
"""Times a validation of one layer of DeepSeek-R1's size on a GPU (or, with --device cpu, on the CPU).

    python benchmarks/bench_validate.py [--experts 256] [--device cuda] [--folder DIR]

A random FP8 source of one dense and one MoE layer (the dense parts and the vocabulary small, the experts R1's) and its
plain rounding to int4 are written first; the rounding is then proven, without the source and against it, each phase
timed.  A JSON line each in results/validate.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness import MINIATURE, record
from w4afp8 import families, formats
from w4afp8.families._spec import PROJECTIONS, Expected, Role
from w4afp8.numerics import fp8, groups, int4
from w4afp8.validate import ValidationReport, validate

R1 = {
    "vocab_size": 1024, "hidden_size": 7168, "intermediate_size": 1024, "moe_intermediate_size": 2048,
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "num_experts_per_tok": 8,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256, "kv_lora_rank": 256, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
SHARD = 64  # experts a file
TARGET = formats.target("sglang_w4afp8")


def pair_of(item: Expected, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one name stands for in the source and in the output: an expert's matrix rounded twice, all else the same."""
    real = torch.randn(item.shape, device=device) * 0.02
    if item.role is Role.EXPERT:
        codes, blocks = fp8.encode_blocks(real)
        seen = fp8.decode_blocks(codes, blocks)
        scale = groups.round_to_bf16(groups.amax(seen) / 7.5)
        packed = int4.pack_low_first(groups.round_to_codes(seen, scale))
        return _named(item, codes, blocks), _named(item, packed, scale)
    if not item.matrix:
        same = {item.name: real.cpu() if item.role is Role.ROUTER else real.add(1).bfloat16().cpu()}
    elif item.role in (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT):
        same = _named(item, *fp8.encode_blocks(real))
    else:
        same = {item.name: real.bfloat16().cpu()}
    return same, same


def _named(item: Expected, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return {item.name: codes.cpu(), f"{item.name}_scale_inv": scale.cpu()}


class Folder:
    """A checkpoint directory that is written a few hundred tensors a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.weight_map, self.bytes = path, dict[str, str](), 0
        self.waiting: dict[str, Tensor] = {}
        path.mkdir()

    def add(self, tensors: dict[str, Tensor]) -> None:
        self.waiting |= tensors
        if len(self.waiting) >= SHARD * 6:
            self.flush(f"model-{len(set(self.weight_map.values())) + 1:05d}.safetensors")

    def flush(self, name: str) -> None:
        if self.waiting:
            save_file(self.waiting, self.path / name, {"format": "pt"})
            self.weight_map |= dict.fromkeys(self.waiting, name)
            self.bytes += sum(tensor.nbytes for tensor in self.waiting.values())
            self.waiting = {}

    def finish(self, config: dict[str, Any], others: dict[str, Any]) -> None:
        self.flush("model-last.safetensors")
        index = {"metadata": {"total_size": self.bytes}, "weight_map": self.weight_map}
        for file, content in {"model.safetensors.index.json": index, "config.json": config, **others}.items():
            (self.path / file).write_text(json.dumps(content))


def write(home: Path, experts: int, device: str) -> tuple[Path, Path]:
    """The source and the output, as an engine would find them."""
    plain = json.loads((MINIATURE / "config.json").read_text()) | R1 | {"n_routed_experts": experts}
    config: dict[str, Any] = plain | {"quantization_config": TARGET.quantization_config(plain)}
    family = families.of(config)
    sizes = family.dimensions(config)
    source, output = Folder(home / "source"), Folder(home / "output")
    for item in family.expected(sizes).values():
        before, after = pair_of(item, device)
        source.add(before)
        output.add(after)
    source.finish(plain, {})
    output.flush("model-last.safetensors")
    stems = [family.expert(sizes, 1, expert) for expert in range(experts)]
    scales = {TARGET.input_scale.tensor_name(stem, p): torch.tensor([0.02]) for stem in stems for p in PROJECTIONS}
    output.waiting = scales
    output.flush(TARGET.input_scale.file)
    output.finish(config, TARGET.side_files(config))
    return source.path, output.path


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
    """Write, warm up on one expert, prove, say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        source, output = write(Path(scratch), options.experts, options.device)
        validate(output, source, device=options.device, sample=1)
        for against in (None, source):
            phases = Phases()
            report = validate(output, against, device=options.device, on_progress=phases)
            note(report, phases.seconds(time.monotonic()), options.experts)


def note(report: ValidationReport, seconds: dict[str, float], experts: int) -> None:
    """One line: what was proven, by what, in how many seconds."""
    (layer,) = report.layers
    record("validate", {
        "what": "one MoE layer of R1's size", "against_source": report.against is not None, "experts": experts,
        "proven_by": report.proven_by, "passed": report.passed, "gemms": report.check("grouped GEMM").examined,
        "gemm_error": layer.gemm, "fused_error": layer.fused, "values_s": seconds["values"],
        "experts_s": seconds["experts"], "all_s": report.seconds,
        "problems": [str(problem)[:200] for problem in report.problems[:5]],
    })  # fmt: skip


if __name__ == "__main__":
    main()
