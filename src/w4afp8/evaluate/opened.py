"""A checkpoint opened for a forward pass, whatever it holds: the source, or any format this program writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from w4afp8 import families, formats
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError
from w4afp8.families._inventory import format_of_experts, take_inventory
from w4afp8.families._spec import PROJECTIONS, Dimensions, Family
from w4afp8.formats._target import CheckpointFormat
from w4afp8.model.decoder import Decoder
from w4afp8.model.weights import Weights

SITES = {"gate_up": PROJECTIONS[:2], "down": PROJECTIONS[2:]}


@dataclass(frozen=True, slots=True)
class Opened:
    """A decoder over one directory, and the static activation scales that stand in it."""

    reader: CheckpointReader
    decoder: Decoder
    target: CheckpointFormat | None  # None: not a format that this program writes, so a source

    @staticmethod
    def of(folder: Path, device: torch.device | str = "cpu") -> Opened:
        """Raises: CheckpointError when the directory is not what its config promises."""
        reader = CheckpointReader(folder)
        family = families.of(reader.config)
        d = families.decodable(family, reader.config)
        target = _target_of(family, d, reader.specs)
        extra = _input_scales(family, d, target) if target else {}
        inventory = take_inventory(family, d, reader.specs, extra)
        return Opened(reader, Decoder(family, d, Weights(reader, inventory, device)), target)

    @property
    def name(self) -> str:
        return self.reader.folder.resolve().name

    def static_scales(self, layer: int) -> dict[str, float]:
        """site -> what SGLang 0.5.23 multiplies with: the largest scale of the layer's experts, rounded to bfloat16.

        Raises: CheckpointError when the directory holds no static scales.
        """
        known = [name for name in formats.targets() if formats.checkpoint(name).input_scale.indexed]
        if self.target is None:
            raise CheckpointError(
                f"{self.name}: found no static activation scales, expected a checkpoint of a format that has them "
                f"({', '.join(known)}); evaluate with activations per token"
            )
        d, stem, rule = self.decoder.d, self.decoder.family.expert, self.target.input_scale
        return {
            site: max(
                float(self.reader.read(rule.tensor_name(stem(d, layer, e), p)).reshape(()).to(torch.bfloat16))
                for e in range(d.experts)
                for p in projections
            )
            for site, projections in SITES.items()
        }

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()


def _target_of(family: Family, d: Dimensions, specs: Mapping[str, TensorSpec]) -> CheckpointFormat | None:
    """The format whose static scales stand in the directory, decided by its experts' tensors."""
    form = format_of_experts(family, d, specs)
    if form is None or form.name not in formats.targets():
        return None
    target = formats.checkpoint(form.name)
    return target if target.input_scale.indexed and not target.input_scale.within else None


def _input_scales(family: Family, d: Dimensions, target: CheckpointFormat) -> dict[str, TensorSpec]:
    names = (
        target.input_scale.tensor_name(family.expert(d, layer, e), p)
        for layer in range(d.all_layers)
        if d.is_moe(layer)
        for e in range(d.experts)
        for p in PROJECTIONS
    )
    return {name: TensorSpec(name, "F32", (1,), target.input_scale.file) for name in names}
