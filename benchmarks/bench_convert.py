"""`w4afp8 convert` beside a plain copy of the same bytes: seconds, rate, share of the copy's, peak memory.

    python benchmarks/bench_convert.py --gb 1 --work /somewhere/with/room

The checkpoint is random, of DeepSeek-V3's expert shape [2048, 7168], as sglang_w4afp8.  The copy is cp and sync, run
before and after; each conversion runs in a process of its own, its start included.  One JSON line per conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import MINIATURE, record
from w4afp8 import families, formats
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.lay_out import input_scale_specs
from w4afp8.families._spec import Role

PAIRS = (("sglang_w4afp8", "compressed_tensors_w4a8"), ("compressed_tensors_w4a8", "sglang_w4afp8"))
CHILD = """
import json, sys
from pathlib import Path
from w4afp8 import conversion
from w4afp8.convert import resources
resources.return_freed_memory()
source, target, out = sys.argv[1:]
conversion.run(conversion.prepare(Path(source), target, Path(out), 5.0))
print(json.dumps({"peak": resources.peak_resident_bytes()}))
"""


def write_source(folder: Path, gigabytes: float) -> None:
    """Random codes and bfloat16 scales in as many experts as it takes; everything else stays small."""
    config: dict[str, Any] = json.loads((MINIATURE / "config.json").read_text())
    wide = {"hidden_size": 7168, "moe_intermediate_size": 2048, "intermediate_size": 256, "num_hidden_layers": 2,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "vocab_size": 256}  # fmt: skip
    experts = max(2, round(gigabytes * 1e9 / (3 * 2048 * 7168 * (0.5 + 4 / 128))))
    config |= wide | {"n_routed_experts": experts, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    family = families.of(config)
    d = family.dimensions(config)
    target = formats.checkpoint("sglang_w4afp8")
    config["quantization_config"] = target.quantization_config(config)
    specs: list[TensorSpec] = []
    for item in family.expected(d).values():
        if not item.matrix:
            specs.append(TensorSpec(item.name, "BF16", item.shape))
            continue
        linear = item.role in (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT)
        plain = target.linear_weight if linear else formats.get("bf16")
        specs += (target.expert_weight if item.role is Role.EXPERT else plain).specs(item.stem, *item.shape)
    folder.mkdir(parents=True)
    shards = {"model-00001-of-00001.safetensors": specs, target.input_scale.file: input_scale_specs(family, d, target)}
    weight_map: dict[str, str] = {}
    for file, held in shards.items():
        with ShardWriter(folder / file, [replace(spec, shard=file) for spec in held]) as writer:
            for spec in held:
                writer.put(spec.name, _random(spec))
        weight_map |= {spec.name: file for spec in held}
    total = sum(spec.span_bytes for held in shards.values() for spec in held)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    atomic.write_json(folder / "model.safetensors.index.json", index)
    atomic.write_json(folder / "config.json", config)


def _random(spec: TensorSpec) -> torch.Tensor:
    if spec.dtype in ("F32", "BF16"):
        return (torch.rand(spec.shape) + 0.5).to(torch.bfloat16).to(DTYPES[spec.dtype])
    return torch.randint(0, 100, spec.shape, dtype=torch.uint8).view(DTYPES[spec.dtype])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the bytes are on the disk, and what the work said."""
    os.sync()
    began = time.monotonic()
    said = work()
    os.sync()
    return time.monotonic() - began, said


def copy_seconds(folder: Path) -> float:
    """cp -r and sync of the same bytes."""
    copied = folder.with_name("copy")
    seconds, _ = timed(lambda: subprocess.run(["cp", "-r", str(folder), str(copied)], check=True))
    shutil.rmtree(copied)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--work", type=Path, help="a folder with room for four times --gb")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work)
        write_source(folder / PAIRS[0][0], arguments.gb)
        for source, target in PAIRS:
            size = sum(p.stat().st_size for p in (folder / source).rglob("*") if p.is_file())
            before = copy_seconds(folder / source)
            command = [sys.executable, "-c", CHILD, str(folder / source), target, str(folder / target)]
            if (folder / target).exists():
                shutil.rmtree(folder / target)
            seconds, child = timed(
                lambda command=command: subprocess.run(command, check=True, capture_output=True, text=True)
            )
            copied = (before + copy_seconds(folder / source)) / 2
            record(
                "convert",
                {
                    "from": source,
                    "to": target,
                    "bytes": size,
                    "seconds": round(seconds, 2),
                    "copy_seconds": round(copied, 2),
                    "share_of_copy": round(copied / seconds, 3),
                    "peak_rss_bytes": json.loads(child.stdout)["peak"],
                },
            )


if __name__ == "__main__":
    main()
