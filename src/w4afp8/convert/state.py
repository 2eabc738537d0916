"""Tensors that outlive a layer but not a run: hidden states to resume from, inputs for validate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from w4afp8.checkpoint.spec import NAMES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A small safetensors file, atomically."""
    specs = [TensorSpec(name, NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    with ShardWriter(path, specs) as writer:
        for name, tensor in tensors.items():
            writer.put(name, tensor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a small safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class StateFiles:
    """Files of the journal's folder, one set per unit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, unit: str, states_BSH: Tensor) -> None:
        """Keep the states that leave `unit`."""
        write_tensors(self._states(unit), {"states": states_BSH})

    def load(self, unit: str) -> Tensor:
        """The states that left `unit`."""
        return read_tensors(self._states(unit))["states"]

    def drop(self, unit: str) -> None:
        """Forget the states of a unit that has a successor."""
        self._states(unit).unlink(missing_ok=True)

    def record(self, unit: str, layer: int, inputs: Mapping[str, Tensor]) -> None:
        """Keep the inputs that validate will feed to this layer."""
        write_tensors(self.folder / f"{unit}.inputs", {f"layers.{layer}.{key}": t for key, t in inputs.items()})

    def _states(self, unit: str) -> Path:
        return self.folder / f"{unit}.states"
