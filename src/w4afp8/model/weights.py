"""Weights by name, dequantized one at a time, whatever format each stands in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES
from w4afp8.families._inventory import Item
from w4afp8.formats._spec import Weight


class Weights:
    """Reads matrices and vectors of an inventory as float32 on `device`; keeps nothing."""

    def __init__(
        self, reader: CheckpointReader, inventory: Mapping[str, Item], device: torch.device | str = "cpu"
    ) -> None:
        self._reader = reader
        self.inventory = inventory
        self.device = torch.device(device)

    def packed(self, name: str, device: torch.device | str = "cpu") -> Weight:
        """A matrix in its middle form, on the CPU unless another device is named."""
        item = self.inventory[name]
        assert item.format is not None, f"{name} is a vector"
        return item.format.unpack(self._parts(item, device))

    def matrix(self, name: str) -> Tensor:
        """float32 [N, K] on the device."""
        item = self.inventory[name]
        assert item.format is not None, f"{name} is a vector"
        return item.format.unpack(self._parts(item, self.device)).dequantize()

    def _parts(self, item: Item, device: torch.device | str) -> dict[str, Tensor]:
        stem = item.expected.stem
        return {spec.name.removeprefix(stem): self._reader.read(spec.name).to(device) for spec in item.tensors}

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that a vector has on disk."""
        return DTYPES[self.inventory[name].tensors[0].dtype]

    def vector(self, name: str) -> Tensor:
        """float32 [N] on the device."""
        return self._reader.read(name).to(self.device).float()
