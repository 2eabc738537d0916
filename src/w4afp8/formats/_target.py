"""What a finished checkpoint directory promises the engine that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from w4afp8.formats._spec import PlainWeight, WeightFormat

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InputScale:
    """Where static activation scales stand: `{expert stem}.{names[projection]}.input_scale`, float32, in `file`."""

    file: str
    names: Mapping[str, str]  # gate_proj -> w1, ...
    indexed: bool = True  # False: no engine reads them; they are kept, outside the index, for the way back
    within: bool = False  # a part of the weight itself (then `file` is empty and the shape is [])

    def tensor_name(self, expert_stem: str, projection: str) -> str:
        return f"{expert_stem}.{self.names[projection]}.input_scale"


NO_INPUT_SCALE = InputScale("", {}, indexed=False)  # activations are scaled when they are seen, or not at all


def no_side_files(config: Config) -> dict[str, Any]:
    """For formats that config.json says everything of."""
    return {}


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """A checkpoint format: read by `convert`, and written if `written`."""

    name: str
    expert_weight: WeightFormat
    linear_weights: tuple[
        WeightFormat, ...
    ]  # how its engines read attention, dense MLPs, shared experts; first written
    input_scale: InputScale
    partial_experts: str | None  # how a layer opts out of 4-bit experts; None when its engines know no way
    # source config -> config.json's field; empty: no field.  The second is for linears in 16 bits, where they may be.
    quantization_config: Callable[[Config], dict[str, Any]]
    side_files: Callable[[Config], dict[str, Any]]  # output config -> file name -> JSON
    read_by: tuple[str, ...]
    stacked: bool = False  # a layer's experts share tensors, each its part along the first axis
    plain_config: Callable[[Config], dict[str, Any]] | None = None
    scheme: str = "W4AFP8"  # of recipes; what `quantize` rounds experts to for this format
    written: bool = True
    expert_dtype: str | None = None  # config.json's field of that name, in families that have it

    @property
    def quantizable(self) -> bool:
        """Whether `quantize` writes it: 4-bit experts, each in tensors of its own, beside which nothing is stored."""
        return self.written and self.expert_weight.bits == 4 and not self.stacked and not self.input_scale.within

    @property
    def linear_weight(self) -> WeightFormat:
        """What linears become where they have to change."""
        return self.linear_weights[0]

    @property
    def takes_plain(self) -> bool:
        """Whether its engines read linears in 16 bits."""
        return any(form.form is PlainWeight for form in self.linear_weights)

    def config_for(self, config: Config, plain: bool) -> dict[str, Any]:
        """config.json's quantization_config, for linears in 16 bits or not."""
        return (self.plain_config if plain and self.plain_config else self.quantization_config)(config)
