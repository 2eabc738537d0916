"""A random checkpoint of any family's shape, for trials, tests and benchmarks.  Floor 6.

    write_checkpoint(Path("toy"), config, seed=1)

The names and shapes are those that the config promises, the numbers are random and finite.  Tensors are made, written
and forgotten one at a time, and each depends only on the seed and its own name: another sharding, or one layer more,
leaves the others as they were.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from w4afp8 import families, formats
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.errors import RecipeError
from w4afp8.families._spec import Expected, Role
from w4afp8.formats._spec import BlockWeight, PlainWeight, WeightFormat
from w4afp8.numerics import fp8

# What the published FP8 checkpoints keep in 16 bits: everything whose role is not one of these.
IN_FP8 = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT, Role.EXPERT)
FP8_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: Literal["fp8", "bf16"] = "fp8",
    shard_gb: float = 5.0,
    seed: int = 0,
    tokenizer_from: Path | None = None,
) -> None:
    """Write `folder` as a publisher would: shards, index, config, and the tokenizer files found in `tokenizer_from`.

    Memory is one tensor.  Raises: CheckpointError when the config is no family's, RecipeError for another `dtype`.
    """
    if dtype not in ("fp8", "bf16"):
        raise RecipeError(f"dtype is {dtype!r}, expected 'fp8' or 'bf16'")
    family = families.of(config)
    expected = family.expected(family.dimensions(config))
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(expected, dtype, int(shard_gb * 1e9)))
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        specs = [replace(spec, shard=file) for name in members for spec in _specs(expected[name], dtype)]
        with ShardWriter(folder / file, specs) as writer:
            for name in members:
                for stored, tensor in _tensors(expected[name], dtype, seed).items():
                    writer.put(stored, tensor)
        weight_map |= {spec.name: file for spec in specs}
        total_bytes += sum(spec.span_bytes for spec in specs)
    for name in TOKENIZER_FILES if tokenizer_from else ():
        if tokenizer_from and (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    atomic.write_json(folder / INDEX, index)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    atomic.write_json(folder / CONFIG, plain | ({"quantization_config": FP8_CONFIG} if dtype == "fp8" else {}))


def _format(expected: Expected, dtype: str) -> WeightFormat:
    return formats.get("deepseek_fp8" if dtype == "fp8" and expected.role in IN_FP8 else "bf16")


def _specs(expected: Expected, dtype: str) -> list[TensorSpec]:
    if not expected.matrix:
        return [TensorSpec(expected.name, "F32" if expected.role is Role.ROUTER else "BF16", expected.shape)]
    n, k = expected.shape
    return _format(expected, dtype).specs(expected.stem, n, k)


def _shards(expected: Mapping[str, Expected], dtype: str, limit_bytes: int) -> Iterator[list[str]]:
    """Names in the order of the layers, a new file whenever the limit would be passed."""
    members: list[str] = []
    used = 0
    for name, item in expected.items():
        span = sum(spec.span_bytes for spec in _specs(item, dtype))
        if members and used + span > limit_bytes:
            yield members
            members, used = [], 0
        members.append(name)
        used += span
    yield members


def _tensors(expected: Expected, dtype: str, seed: int) -> dict[str, Tensor]:
    """What one name stands for: norms near 1, matrices that keep the size of what they multiply."""
    digest = hashlib.sha256(f"{seed}:{expected.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    real = torch.randn(expected.shape, generator=generator)
    if not expected.matrix:
        biased = expected.role is Role.ROUTER
        return {expected.name: real.mul_(0.01) if biased else real.mul_(0.1).add_(1).to(torch.bfloat16)}
    if expected.role is not Role.EMBEDDING:
        real.mul_(1 / math.sqrt(expected.shape[1]))
    fmt = _format(expected, dtype)
    weight = BlockWeight(*fp8.encode_blocks(real)) if fmt.bits == 8 else PlainWeight(real.to(torch.bfloat16))
    return {expected.stem + suffix: tensor for suffix, tensor in fmt.pack(weight).items()}
