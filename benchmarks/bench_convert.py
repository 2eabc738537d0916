"""`w4afp8 convert` beside a plain copy of the same bytes: seconds, rate, share of the copy's, peak memory.

    python benchmarks/bench_convert.py --gb 5 --work /somewhere/with/room

The checkpoint is random, of DeepSeek-V3's expert shape [2048, 7168], as sglang_w4afp8.  Copy (cp and sync) and
conversion (the command itself, its start included, and sync) take turns, each result removed before the next begins,
so that twice --gb of disk is enough; what counts are the medians.  One JSON line per direction.
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
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness import MINIATURE, record
from w4afp8 import conversion, families, formats
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.lay_out import input_scale_specs
from w4afp8.families._spec import Role

PAIRS = (("sglang_w4afp8", "compressed_tensors_w4a8"), ("compressed_tensors_w4a8", "sglang_w4afp8"))


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


def timed(command: list[str], made: Path, keep: bool = False) -> tuple[float, int]:
    """Seconds until what the command made is on the disk, and its peak resident bytes; `made` is removed then."""
    os.sync()
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    os.sync()
    seconds = time.monotonic() - began
    assert status == 0, command
    if not keep:
        shutil.rmtree(made)
    return seconds, used.ru_maxrss * 1024


def measure(source: Path, target: str, repeat: int, jobs: list[str]) -> dict[str, Any]:
    """Copy and conversion in turn; the first pair warms the page cache and does not count."""
    out, copied = source.with_name("out"), source.with_name("copy")
    convert = [
        sys.executable,
        "-m",
        "w4afp8.cli",
        "convert",
        str(source),
        "--format",
        target,
        "-o",
        str(out),
        "-q",
        *jobs,
    ]
    copies, conversions, peaks = [], [], []
    for _ in range(repeat + 1):
        copies.append(timed(["cp", "-r", str(source), str(copied)], copied)[0])
        seconds, peak = timed(convert, out)
        conversions.append(seconds)
        peaks.append(peak)
    size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
    copy_seconds, seconds = median(copies[1:]), median(conversions[1:])
    return {
        "from": source.name,
        "to": target,
        "bytes": size,
        "seconds": round(seconds, 2),
        "copy_seconds": round(copy_seconds, 2),
        "share_of_copy": round(copy_seconds / seconds, 3),
        "gb_per_second": round(size / seconds / 1e9, 3),
        "peak_rss_bytes": max(peaks),
        "all_seconds": [round(s, 2) for s in conversions[1:]],
        "all_copy_seconds": [round(s, 2) for s in copies[1:]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--work", type=Path, help="a folder with room for twice --gb")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--jobs", help="as the command's own")
    arguments = parser.parse_args()
    jobs = ["--jobs", arguments.jobs] if arguments.jobs else []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work)
        write_source(folder / PAIRS[0][0], arguments.gb)
        for source, target in PAIRS:
            if not (folder / source).exists():  # the second direction begins with what the first one makes
                conversion.run(conversion.prepare(folder / PAIRS[0][0], source, folder / source, 5.0))
                shutil.rmtree(folder / PAIRS[0][0])
            found = measure(folder / source, target, arguments.repeat, jobs)
            record("convert", found | {"jobs": arguments.jobs or "default", "load_1m": round(os.getloadavg()[0], 2)})


if __name__ == "__main__":
    main()
