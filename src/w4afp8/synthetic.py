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
from typing import Any

import torch
from torch import Tensor

from w4afp8 import families, formats
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.lay_out import suited
from w4afp8.errors import RecipeError
from w4afp8.families._spec import VECTOR_DTYPES, Expected, Role, Sizes
from w4afp8.formats._move import move
from w4afp8.formats._spec import (
    MICRO_GROUP,
    AwareWeight,
    BlockWeight,
    FineWeight,
    GroupWeight,
    MicroWeight,
    PlainWeight,
    Weight,
    WeightFormat,
)
from w4afp8.formats._target import CheckpointFormat
from w4afp8.numerics import fp8
from w4afp8.numerics.groups import GROUP

# What the published FP8 checkpoints keep in 16 bits: everything whose role is not one of these.
IN_FP8 = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT, Role.EXPERT)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: str = "fp8",
    shard_gb: float = 5.0,
    seed: int = 0,
    tokenizer_from: Path | None = None,
) -> None:
    """Write `folder` as a publisher would: shards, index, config, and the tokenizer files found in `tokenizer_from`.

    `dtype` is a checkpoint format, or "fp8" for `deepseek_fp8`; one with static activation scales cannot be made up.
    Memory is one tensor.  Raises: CheckpointError when the config is no family's, RecipeError for another `dtype`.
    """
    style = style_of(dtype)
    if style.input_scale.indexed and not style.input_scale.within:
        raise RecipeError(
            f"dtype is {dtype!r}, whose activation scales come from calibration; quantize or convert to it"
        )
    family = families.of(config)
    style = suited(style, family)
    sizes = family.dimensions(config)
    expected = (family.apart if family.apart and not style.stacked else family.expected)(sizes)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(expected, style, int(shard_gb * 1e9)))
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        specs = [replace(spec, shard=file) for name in members for spec in specs_of(expected[name], style)]
        with ShardWriter(folder / file, specs) as writer:
            for name in members:
                for stored, tensor in _tensors(expected[name], style, seed, sizes).items():
                    writer.put(stored, tensor)
        weight_map |= {spec.name: file for spec in specs}
        total_bytes += sum(spec.span_bytes for spec in specs)
    for name in TOKENIZER_FILES if tokenizer_from else ():
        if tokenizer_from and (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    atomic.write_json(folder / INDEX, index)
    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "expert_dtype")}
    said = style.config_for(kept, plain=style.linear_weight.form is PlainWeight)
    named = {"expert_dtype": style.expert_dtype} if family.says_expert_dtype and style.expert_dtype else {}
    atomic.write_json(folder / CONFIG, kept | ({"quantization_config": said} if said else {}) | named)


def style_of(dtype: str) -> CheckpointFormat:
    """The checkpoint format that `dtype` means.  Raises: RecipeError when there is none."""
    return formats.checkpoint("deepseek_fp8" if dtype == "fp8" else dtype)


def _format(expected: Expected, style: CheckpointFormat) -> WeightFormat:
    if expected.role is Role.EXPERT:
        return style.expert_weight
    return style.linear_weight if expected.role in IN_FP8 else formats.get("bf16")


def specs_of(expected: Expected, style: CheckpointFormat) -> list[TensorSpec]:
    """The tensors that one name stands for."""
    if not expected.matrix:
        dtype = expected.dtypes[0] if expected.dtypes != VECTOR_DTYPES else "BF16"
        if expected.role is Role.ROUTER and expected.dtypes == VECTOR_DTYPES:
            dtype = "F32"
        shape = (expected.stack, *expected.shape) if expected.stack else expected.shape
        return [TensorSpec(expected.name, dtype, shape)]
    n, k = expected.shape
    return _format(expected, style).specs(expected.stem, n, k, expected.stack)


def _shards(expected: Mapping[str, Expected], style: CheckpointFormat, limit_bytes: int) -> Iterator[list[str]]:
    """Names in the order of the layers, a new file whenever the limit would be passed."""
    members: list[str] = []
    used = 0
    for name, item in expected.items():
        span = sum(spec.span_bytes for spec in specs_of(item, style))
        if members and used + span > limit_bytes:
            yield members
            members, used = [], 0
        members.append(name)
        used += span
    yield members


def _tensors(expected: Expected, style: CheckpointFormat, seed: int, sizes: Sizes) -> dict[str, Tensor]:
    """What one name stands for: norms near 1, matrices that keep the size of what they multiply."""
    digest = hashlib.sha256(f"{seed}:{expected.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    if not expected.matrix:
        (spec,) = specs_of(expected, style)
        if spec.dtype not in VECTOR_DTYPES:  # a table of experts
            return {
                expected.name: torch.randint(0, sizes.experts, spec.shape, generator=generator).to(DTYPES[spec.dtype])
            }
        real = torch.randn(spec.shape, generator=generator)
        biased = expected.role in (Role.ROUTER, Role.EXPERT_BIAS)
        return {expected.name: (real.mul_(0.01) if biased else real.mul_(0.1).add_(1)).to(DTYPES[spec.dtype])}
    fmt = _format(expected, style)
    each = [fmt.pack(_weight(expected, fmt, generator)) for _ in range(expected.stack or 1)]
    joined = {
        suffix: torch.stack([parts[suffix] for parts in each]) if expected.stack else each[0][suffix]
        for suffix in each[0]
    }
    return {expected.stem + suffix: tensor for suffix, tensor in joined.items()}


def _weight(expected: Expected, fmt: WeightFormat, generator: torch.Generator) -> Weight:
    """A random matrix in the middle form of its format, of about the size that its inputs want."""
    n, k = expected.shape
    size = 1.0 if expected.role is Role.EMBEDDING else 1 / math.sqrt(k)
    if fmt.form is MicroWeight:
        near = 127 + math.floor(math.log2(size))
        exponent = torch.randint(near - 3, near, (n, k // MICRO_GROUP), generator=generator).to(torch.uint8)
        return MicroWeight(torch.randint(0, 16, (n, k), generator=generator).to(torch.uint8), exponent)
    if fmt.form in (FineWeight, GroupWeight, AwareWeight):
        codes = torch.randint(0, 256, (n, k // 2), generator=generator).to(torch.uint8)
        scale = (torch.rand(n, -(-k // GROUP), generator=generator) + 0.5).mul_(size / 4).to(torch.bfloat16).float()
        return move(GroupWeight.packed(codes, scale), fmt.form, torch.tensor(0.01))
    real = torch.randn(n, k, generator=generator).mul_(size)
    if fmt.form is PlainWeight:
        return PlainWeight(real.to(torch.bfloat16))
    codes, scale = fp8.encode_blocks(real)
    if fmt.parts[1].dtypes[0] == "F8_E8M0":  # the next power of two, as DeepSeek-V4's own files have it
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
        codes = fp8.encode(real / fp8.expand_blocks(scale, n, k))
    return BlockWeight(codes, scale)
