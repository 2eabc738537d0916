"""Writing one unit: its shards, each filled in any order, all durable before the journal says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.plan import Unit
from w4afp8.formats._spec import Weight, WeightFormat
from w4afp8.model.weights import Weights


class UnitWriter:
    """Routes each tensor of a unit to its shard; on leaving, every shard is published or none is."""

    def __init__(self, out: Path, unit: Unit) -> None:
        self.unit = unit
        self._shards = [ShardWriter(out / file, specs) for file, specs in unit.shards.items()]
        self._home = {s.name: w for w, specs in zip(self._shards, unit.shards.values()) for s in specs}

    def put(self, name: str, tensor: Tensor, part: int | None = None) -> None:
        """Write one tensor where the plan wants it, or one part of a stack, in the stack's order."""
        if part is None:
            self._home[name].put(name, tensor)
        else:
            self._home[name].put_part(name, part, tensor)

    def put_weight(self, name: str, form: WeightFormat, weight: Weight) -> None:
        """Write one matrix (by its `.weight` name) as the tensors of its format."""
        for suffix, tensor in form.pack(weight).items():
            self.put(name.removesuffix(".weight") + suffix, tensor)

    def copy_rest(self, reader: CheckpointReader, instead: Mapping[str, Tensor]) -> None:
        """Copy what the unit takes from the source, but for the tensors, by their names there, that a fold replaced."""
        for name in self.unit.copies:
            source = self.unit.renamed.get(name, name)
            if source in instead:
                self.put(name, instead[source])
            else:
                self.copy(name, reader)

    def copy(self, name: str, reader: CheckpointReader) -> None:
        """Copy one tensor of the output, which may have another name in the source."""
        self._home[name].copy(name, reader, self.unit.renamed.get(name, name))

    def recode(self, weights: Weights, linear: WeightFormat, instead: Mapping[str, Tensor]) -> None:
        """Write the matrices that change format on the way, folded ones as the fold left them."""
        for name in self.unit.recoded:
            assert linear.encode is not None, f"{linear.name} cannot be made from real numbers alone"
            real = instead[name].float() if name in instead else weights.matrix(name)
            self.put_weight(name, linear, linear.encode(real))

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor written, by name."""
        return {name: digest for shard in self._shards for name, digest in shard.digests.items()}

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._shards:
            if kind is None:
                shard.finish()
            else:
                shard.abandon()
