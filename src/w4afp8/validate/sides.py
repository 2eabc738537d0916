"""The two sides of a comparison, and what is fed to both.  Letters: T tokens, H hidden, K choices per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w4afp8 import families
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader, read_tensor
from w4afp8.errors import CheckpointError
from w4afp8.families._inventory import Item, take_inventory
from w4afp8.families._spec import PROJECTIONS, Dimensions, Family, Sizes
from w4afp8.formats._spec import GroupWeight, MicroWeight
from w4afp8.model.weights import Weights
from w4afp8.numerics import groups
from w4afp8.validate.config import OWN_FOLDER

INPUTS = "inputs.safetensors"
SYNTHETIC_TOKENS = 16
FEWEST_TOKENS = 8  # an expert that fewer recorded tokens reach is also fed the first ones of the others


@dataclass(frozen=True, slots=True)
class Side:
    """One checkpoint, opened."""

    reader: CheckpointReader
    config: Mapping[str, Any]
    family: Family
    d: Dimensions
    weights: Weights

    @staticmethod
    def of(
        reader: CheckpointReader, inventory: Mapping[str, Item] | None = None, device: torch.device | str = "cpu"
    ) -> Side:
        """Its weights are read to `device`.  Raises: CheckpointError when they are not what its config promises."""
        family = families.of(reader.config)
        d = families.decodable(family, reader.config)
        items = take_inventory(family, d, reader.specs) if inventory is None else inventory
        return Side(reader, reader.config, family, d, Weights(reader, items, device))

    @property
    def device(self) -> torch.device:
        return self.weights.device

    def read(self, name: str) -> Tensor:
        """One tensor, as it is on disk, on the device."""
        return self.reader.read(name).to(self.device)

    def group_weight(self, name: str) -> GroupWeight:
        """A quantized matrix as codes and scales; int4 scales as the engine sees them: rounded to bfloat16."""
        weight = self.weights.packed(name, self.device)
        if isinstance(weight, MicroWeight):
            return weight.doubled()
        assert isinstance(weight, GroupWeight)
        return GroupWeight(weight.codes_NK, groups.round_to_bf16(weight.scale_NG), weight.group_k)

    def expert_names(self, layer: int, expert: int) -> dict[str, str]:
        """projection -> weight name."""
        stem = self.family.expert(self.d, layer, expert)
        return {projection: f"{stem}.{projection}.weight" for projection in PROJECTIONS}

    def vector(self, layer: int, name: str) -> Tensor:
        return self.weights.vector(f"model.layers.{layer}.{name}")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the experts of one layer are fed: the source's normed states, and who goes where."""

    x: Tensor  # float32 [T, H]
    experts: Tensor  # int64 [T, K]
    weights: Tensor  # float32 [T, K], routed_scaling_factor inside
    recorded: bool

    def to(self, device: torch.device) -> Inputs:
        """The same numbers on another device."""
        return Inputs(self.x.to(device), self.experts.to(device), self.weights.to(device), self.recorded)

    def rows_of(self, expert: int) -> tuple[Tensor, int]:
        """Rows to feed to `expert`, and how many of them, the first ones, are really routed to it."""
        routed = (self.experts == expert).any(1)
        own = routed.nonzero().flatten()
        more = (~routed).nonzero().flatten()[: max(0, FEWEST_TOKENS - len(own))]
        return torch.cat((own, more)), len(own)

    def weight_of(self, expert: int, rows: Tensor) -> Tensor:
        """The routing weight of each of `rows` for `expert`, 0 where it is not routed there: [rows]."""
        return torch.where(self.experts[rows] == expert, self.weights[rows], 0.0).sum(1)


class RecordedInputs:
    """`inputs.safetensors` of a finished run: per layer x, experts, weights."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OWN_FOLDER / INPUTS
        self._specs = {s.name: s for s in read_header(self._path)[0]} if self._path.exists() else {}

    def layer(self, layer: int, d: Sizes) -> Inputs:
        """The recorded inputs of `layer`; Gaussian ones of a fixed seed where there are none.

        Raises: CheckpointError when they are no inputs of such a layer.
        """
        prefix = f"layers.{layer}."
        if f"{prefix}x" in self._specs:
            self._require_sound(prefix, d)
            x, experts, weights = (
                read_tensor(self._path, self._specs[f"{prefix}{part}"]) for part in ("x", "experts", "weights")
            )
            found = Inputs(x.float(), experts.long(), weights.float(), True)
            if not bool(((found.experts >= 0) & (found.experts < d.experts)).all()):
                raise CheckpointError(f"{self._path.name}: {prefix}experts names experts beyond 0..{d.experts - 1}")
            return found
        generator = torch.Generator().manual_seed(layer)
        x_TH = torch.randn(SYNTHETIC_TOKENS, d.hidden, generator=generator)
        experts = torch.rand(SYNTHETIC_TOKENS, d.experts, generator=generator).topk(d.experts_per_token).indices
        scale = d.routed_scale if isinstance(d, Dimensions) else 1.0
        return Inputs(x_TH, experts, torch.full(experts.shape, scale / d.experts_per_token), False)

    def _require_sound(self, prefix: str, d: Sizes) -> None:
        tokens = self._specs[f"{prefix}x"].shape[:1]
        shapes = {"x": (*tokens, d.hidden), "experts": (*tokens, d.experts_per_token)}
        shapes["weights"] = shapes["experts"]
        for part, shape in shapes.items():
            spec = self._specs.get(f"{prefix}{part}")
            if (
                spec is None
                or spec.shape != shape
                or 0 in shape
                or (part == "experts") != (spec.dtype in ("I64", "I32"))
            ):
                found = f"{spec.dtype} {list(spec.shape)}" if spec else "nothing"
                raise CheckpointError(
                    f"{self._path.name}: {prefix}{part} is {found}, expected {list(shape)} "
                    f"{'whole numbers' if part == 'experts' else 'numbers'}; remove the file, or restore it"
                )


def norm_fold(source: Side, output: Side, layer: int) -> Tensor:
    """What a norm fold multiplied the experts' input with, per channel: float32 [H], all ones without a fold."""
    before, after = (side.vector(layer, "post_attention_layernorm.weight") for side in (source, output))
    return torch.where(before != 0, after / before, torch.ones_like(before))


def chosen_experts(experts: int, sample: int | None) -> list[int]:
    """All experts of a layer, or `sample` of them evenly spread."""
    if sample is None or sample >= experts:
        return list(range(experts))
    return sorted({int(i * experts / sample) for i in range(max(1, sample))})
