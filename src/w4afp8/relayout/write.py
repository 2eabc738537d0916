"""One unit written: an expert is read, laid out for every rank, read back and compared, and put where it belongs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.jobs import in_parallel
from w4afp8.errors import FormatError
from w4afp8.layouts import _derived, _record
from w4afp8.layouts._experts import Holder, Layer
from w4afp8.layouts._record import Record
from w4afp8.layouts._spec import STACKS
from w4afp8.layouts._split import folder_of
from w4afp8.layouts._stack import Matrix, Stacker, Stored
from w4afp8.numerics.bytewise import same_bytes
from w4afp8.relayout.plan import Order, Shards, Unit


class _Rank:
    """The writers of one rank's shards, by tensor."""

    def __init__(self, writers: dict[str, ShardWriter]) -> None:
        self.writers = writers

    def put(self, name: str, axis: int, index: int, tensor: Tensor) -> None:
        """One expert's part of a stack."""
        writer = self.writers[name]
        if axis == 0:
            writer.put_part(name, index, tensor[0])
        else:
            writer.put_across(name, index, tensor.select(axis, 0))


def write_unit(order: Order, stacker: Stacker, unit: Unit, record: Record) -> None:
    """Every shard of the unit, on every rank."""
    with contextlib.ExitStack() as opened:

        def writers(folder: Path, shards: Shards) -> dict[str, ShardWriter]:
            found: dict[str, ShardWriter] = {}
            for file, specs in shards.items():
                writer = opened.enter_context(ShardWriter(folder / file, specs, record.metadata, digest=False))
                found |= dict.fromkeys((spec.name for spec in specs), writer)
            return found

        top = writers(order.out, unit.carried)
        ranks = [_Rank(top)]
        if unit.ranks:
            ranks = []
            for rank, shards in enumerate(unit.ranks):
                folder = order.out / folder_of(rank, stacker.split.ranks)
                folder.mkdir(parents=True, exist_ok=True)
                ranks.append(_Rank(writers(folder, shards)))
        if unit.layer is not None and unit.layer in order.layers:
            _write_stacks(order, stacker, order.layers[unit.layer], ranks)
        for name, writer in top.items():
            if name in order.reader.specs:
                writer.copy(name, order.reader, name)


def _write_stacks(order: Order, stacker: Stacker, layer: Layer, ranks: list[_Rank]) -> None:
    split = stacker.split
    tasks = [partial(_laid_out, order, stacker, holders) for holders in layer.experts]
    for expert, found in enumerate(in_parallel(order.jobs, tasks)):
        ep_rank, local = divmod(expert, split.local_experts)
        for (stack, tp_rank), stored in found.items():
            for piece in stacker.pieces:
                name = f"{layer.stem}.{stack}{piece.suffix}"
                rank = ranks[split.rank(ep_rank, tp_rank)]
                rank.put(name, piece.order.expert_axis, local, stored[piece.suffix])
    scaled = bool(order.scales)
    specs = _derived.specs(stacker, layer, scaled)
    for number, writing in enumerate(ranks if specs else ()):
        values = _derived.values(stacker, layer, scaled, number, order.reader.read)
        for spec, value in zip(specs, values, strict=True):
            writing.writers[spec.name].put(spec.name, value)


def _laid_out(order: Order, stacker: Stacker, holders: tuple[Holder, ...]) -> dict[tuple[str, int], Stored]:
    """(stack, TP rank) -> one expert's pieces, which were read back and compared."""
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, Matrix] = {}
    for holder in holders:
        found = holder.read(order.reader.read)
        tensors |= found
        matrices |= holder.matrices(found)
    ranks = range(stacker.split.tp)
    stored = {(stack, rank): stacker.store(stack, matrices, rank) for stack in STACKS for rank in ranks}
    back: dict[str, Matrix] = {}
    for stack in STACKS:
        back |= stacker.whole(stack, [stacker.load(stack, stored[stack, rank], rank) for rank in ranks])
    for holder in holders:
        _compare(order, stacker, tensors, holder.write(back))
    return stored


def _compare(order: Order, stacker: Stacker, read: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> None:
    """Raises: FormatError when the tensors that come back are not those that were read, bit for bit."""
    for at, (name, found) in enumerate(back.items()):
        if at and stacker.keeps_scales:
            return  # the true scales stand in KEPT
        if not same_bytes(found, read[name]):
            raise FormatError(
                f"{name}: read back from {order.layout.name} it has other bytes; the source holds what "
                f"{order.weight.name} does not say, quantize it again"
            )


def write_kept(order: Order, stacker: Stacker) -> None:
    """What no stack holds: static scales of every expert, and the true group scales where only near ones are stored."""
    names = list(order.scales)
    if stacker.keeps_scales:
        items = {h.item.expected.name: h.item for layer in order.layers.values() for e in layer.experts for h in e}
        names += [spec.name for item in items.values() for spec in item.tensors[1:]]
    if names:
        path = order.out / _record.KEPT
        path.parent.mkdir(parents=True, exist_ok=True)
        specs = [order.reader.specs[name] for name in names]
        with ShardWriter(path, specs, digest=False) as writer:
            for name in names:
                writer.copy(name, order.reader, name)
