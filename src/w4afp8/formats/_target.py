"""What a finished checkpoint directory promises the engine that loads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from w4afp8.formats._spec import WeightFormat


@dataclass(frozen=True, slots=True)
class InputScale:
    """Where static activation scales stand: `{expert stem}.{names[projection]}.input_scale`, float32 [1], in `file`."""

    file: str
    names: Mapping[str, str]  # gate_proj -> w1, ...
    indexed: bool = True  # False: no engine reads them; they are kept, outside the index, for the way back

    def tensor_name(self, expert_stem: str, projection: str) -> str:
        return f"{expert_stem}.{self.names[projection]}.input_scale"


class QuantizationConfig(Protocol):
    """Makes config.json's `quantization_config`."""

    def __call__(self, config: Mapping[str, Any], rest: Collection[str] = (), /) -> dict[str, Any]:
        """`config` is the source's, `rest` the formats of the matrices that are no routed experts."""
        ...


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """A checkpoint format that can be written."""

    name: str
    expert_weight: WeightFormat
    input_scale: InputScale
    partial_experts: str | None  # how a layer opts out of int4 experts; None when its engines know no way
    quantization_config: QuantizationConfig
    side_files: Callable[[Mapping[str, Any]], dict[str, Any]]  # output config -> file name -> JSON
    read_by: tuple[str, ...]
    rest: Mapping[str, str]  # a format beside the experts -> the same bytes as these engines name them
    validated: (
        bool  # `w4afp8 validate` can prove it, so `quantize` may write it; `convert` proves what it writes itself
    )
