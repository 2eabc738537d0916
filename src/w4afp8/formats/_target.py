"""What a finished checkpoint directory promises the engine that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from w4afp8.formats._spec import WeightFormat


@dataclass(frozen=True, slots=True)
class InputScale:
    """Where static activation scales stand: `{expert stem}.{names[projection]}.input_scale`, float32 [1], in `file`."""

    file: str
    names: Mapping[str, str]  # gate_proj -> w1, ...
    indexed: bool = True  # False: no engine reads them; they are kept, outside the index, for the way back

    def tensor_name(self, expert_stem: str, projection: str) -> str:
        return f"{expert_stem}.{self.names[projection]}.input_scale"


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """A checkpoint format that can be written."""

    name: str
    expert_weight: WeightFormat
    linear_weight: WeightFormat  # how its engines read attention, dense MLPs and shared experts
    input_scale: InputScale
    partial_experts: str | None  # how a layer opts out of int4 experts; None when its engines know no way
    quantization_config: Callable[[Mapping[str, Any]], dict[str, Any]]  # source config -> config.json's field
    side_files: Callable[[Mapping[str, Any]], dict[str, Any]]  # output config -> file name -> JSON
    read_by: tuple[str, ...]
    validated: bool  # `validate` can prove it, so `quantize` may write it; `convert` proves what it writes itself
    stacked: bool = False  # a layer's experts share tensors, each its part along the first axis
