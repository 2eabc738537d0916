"""What a safetensors header says of a tensor, and nothing more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from w4afp8.errors import CheckpointError

# The format's dtype names (safetensors 0.8.0, `tensor.rs`) that a checkpoint of ours can meet.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor as they stand in a file: uint8, one axis."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as its header describes it: `begin` is the first data byte's offset in `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str = ""
    begin: int = 0

    @property
    def item_bytes(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def span_bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes

    def part(self, index: int) -> TensorSpec:
        """Element `index` of the first axis, as a tensor of its own: [E, ...] -> [...]."""
        if not self.shape or not 0 <= index < self.shape[0]:
            raise CheckpointError(f"{self}: has no part {index} along its first axis")
        part = replace(self, shape=self.shape[1:])
        return replace(part, begin=self.begin + index * part.span_bytes)

    def __str__(self) -> str:
        where = f" in {self.shard}" if self.shard else ""
        return f"{self.name} ({self.dtype} {list(self.shape)}){where}"
