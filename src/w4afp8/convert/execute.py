"""Writing one unit: its shards, each filled in any order, all durable before the journal says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.plan import Unit


class UnitWriter:
    """Routes each tensor of a unit to its shard; on leaving, every shard is published or none is."""

    def __init__(self, out: Path, unit: Unit) -> None:
        self.unit = unit
        self._shards = [ShardWriter(out / file, specs) for file, specs in unit.shards.items()]
        self._home = {s.name: w for w, specs in zip(self._shards, unit.shards.values()) for s in specs}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor where the plan wants it."""
        self._home[name].put(name, tensor)

    def copy_rest(self, reader: CheckpointReader, instead: Mapping[str, Tensor]) -> None:
        """Copy what the unit takes from the source, but for the tensors, by their names there, that a fold replaced."""
        for name in self.unit.copies:
            source = self.unit.renamed.get(name, name)
            if source in instead:
                self.put(name, instead[source])
            else:
                self._home[name].copy(name, reader, source)

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
