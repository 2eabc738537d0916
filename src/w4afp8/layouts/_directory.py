"""A directory in a layout, read back: every tensor of the canonical checkpoint from the stacks of all ranks.

Memory is a few experts.  Nothing here trusts what it reads: the digests of the record decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from w4afp8 import layouts
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CONFIG, CheckpointReader, read_json, read_tensor, refuse_link_out
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError, raise_all
from w4afp8.layouts import _record, _stack
from w4afp8.layouts._experts import Holder, Layer, inventory, layers_of, sizes_of
from w4afp8.layouts._spec import STACKS, Layout
from w4afp8.layouts._split import Sizes, Split, folder_of
from w4afp8.layouts._stack import Matrix, Stacker, Stored


class LaidOut:
    """What `w4afp8 convert --layout` wrote.

    Raises: CheckpointError, FormatError when record, headers and config do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = _record.read(folder)
        r = self.record
        layout = layouts.get(r.layout)
        if layout.version != r.version:
            raise CheckpointError(
                f"{folder} has version {r.version} of {r.layout}, this program knows {layout.version}; "
                "use the program that wrote it, or convert the canonical checkpoint again"
            )
        self.split = self._split_of(layout)
        self.stacker: Stacker = _stack.make(layout, r.form, self.split, r.holding, r.tolerance)
        self.top = CheckpointReader(folder)
        tags = [folder_of(rank, self.split.ranks) for rank in range(self.split.ranks)]
        for tag in filter(None, tags):
            refuse_link_out(folder, folder / tag)
        self.ranks = [CheckpointReader(folder / tag) if tag else self.top for tag in tags]

    def _split_of(self, layout: Layout) -> Split:
        """The ranks, where config.json and the headers that were kept agree with the record."""
        r = self.record
        form, weight, sizes = sizes_of(self.layers)
        said = Sizes(*(r.sizes.get(name, 0) for name in ("experts", "hidden", "intermediate", "group")))
        holdings = layout.holdings(form)
        if (form, weight.name, sizes, layout.pad) != (r.form, r.weight_format, said, r.pad) or isinstance(
            holdings, str
        ):
            raise CheckpointError(
                f"{_record.RECORD} says {r.weight_format} of {said}, padded to {r.pad}; the kept headers say "
                f"{weight.name} of {sizes}, and {layout.name} pads to {layout.pad}"
            )
        split = Split(sizes, r.tp, r.ep, r.pad)
        problems = split.refusals()
        problems += [f"{n}: its digest or its header is missing" for n in sorted(self.specs.keys() ^ r.tensors.keys())]
        if r.holding >= len(holdings):
            problems.append(f"{layout.name} has no holding {r.holding}")
        elif r.tolerance and not holdings[r.holding].scales.searched:
            problems.append(f"a tolerance of {r.tolerance}, and {layout.name} holds scales exactly")
        raise_all(problems, CheckpointError, f"{_record.RECORD} says what cannot be")
        return split

    @cached_property
    def config(self) -> dict[str, Any]:
        """The canonical config.json."""
        return read_json(self.folder / _record.FILES / CONFIG)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Every canonical tensor, from the headers that were kept."""
        found = {}
        for shard, said in self.record.shards.items():
            for spec in read_header(self.header(shard), said["bytes"])[0]:
                found[spec.name] = TensorSpec(spec.name, spec.dtype, spec.shape, shard, spec.begin)
        return found

    def header(self, shard: str) -> Path:
        """The file that keeps a canonical shard's header."""
        path = self.folder / _record.HEADERS / f"{shard}.header"
        refuse_link_out(self.folder, path)
        return path

    @cached_property
    def kept(self) -> dict[str, TensorSpec]:
        """Canonical tensors that no stack holds and no engine reads."""
        path = self.folder / _record.KEPT
        if path.is_file():
            refuse_link_out(self.folder, path)
        return {spec.name: spec for spec in read_header(path)[0]} if path.is_file() else {}

    @cached_property
    def planned(self) -> dict[str, TensorSpec]:
        """Every piece of every stack, as a rank holds it."""
        return {spec.name: spec for layer in self.layers.values() for _, _, spec in self.stacker.specs(layer.stem)}

    @cached_property
    def layers(self) -> dict[int, Layer]:
        """Where the canonical checkpoint keeps its experts."""
        family, items = inventory(self.config, self.specs)
        return layers_of(family, items.values())

    def require_complete(self) -> None:
        """Raises: CheckpointError naming every stack and tensor that the way back needs and no header announces."""
        problems: list[str] = []

        def look(found: TensorSpec | None, planned: TensorSpec, where: Path) -> None:
            if found is None or (found.dtype, found.shape) != (planned.dtype, planned.shape):
                expected = f"{planned.dtype} {list(planned.shape)}"
                problems.append(f"{found or f'{planned.name}: not in {where}'}, expected {expected}")

        for reader in self.ranks:
            for name, planned in self.planned.items():
                look(reader.specs.get(name), planned, reader.folder)
        for name in self.others():
            look(self.kept.get(name) or self.top.specs.get(name), self.specs[name], self.folder)
        if self.stacker.keeps_scales:
            items = {h.item.expected.name: h.item for layer in self.layers.values() for e in layer.experts for h in e}
            for spec in (spec for item in items.values() for spec in item.tensors[1:]):
                look(self.kept.get(spec.name), spec, self.folder / _record.KEPT)
        raise_all(problems, CheckpointError, f"{self.folder} is not complete, or damaged: fetch it again")

    def stored(self, layer: Layer, expert: int, stack: str, tp_rank: int) -> Stored:
        """One expert's pieces as a rank holds them, by suffix."""
        ep_rank, local = divmod(expert, self.split.local_experts)
        reader = self.ranks[self.split.rank(ep_rank, tp_rank)]
        found = {}
        for piece in self.stacker.pieces:
            name, axis = f"{layer.stem}.{stack}{piece.suffix}", piece.order.expert_axis
            if name not in reader.specs:
                raise CheckpointError(f"{name}: not in {reader.folder}; the directory is not complete")
            _require_alike(reader.specs[name], self.planned[name])
            tensor = reader.read(name, local) if axis == 0 else reader.read_across(name, local)
            found[piece.suffix] = tensor.unsqueeze(axis)
        return found

    def _matrices(self, layer: Layer, expert: int, stack: str) -> dict[str, Matrix]:
        """The canonical matrices of one stack of one expert, by projection."""
        ranks = range(self.split.tp)
        parts = [self.stacker.load(stack, self.stored(layer, expert, stack, rank), rank) for rank in ranks]
        return self.stacker.whole(stack, parts)

    def tensors(
        self, layer: Layer, expert: int, wanted: Collection[str] | None = None
    ) -> list[tuple[Holder, dict[str, Tensor]]]:
        """The canonical tensors that one expert stands in, or their part, by name; holders of none `wanted` left out.

        Each stack is read once.  Several threads may ask for different experts.
        """
        stacks: dict[str, dict[str, Matrix]] = {}
        found = []
        for holder in layer.experts[expert]:
            names = [spec.name for spec in holder.item.tensors]
            if wanted is not None and not any(name in wanted for name in names):
                continue
            matrices: dict[str, Matrix] = {}
            for stack, projections in STACKS.items():
                if set(projections) & set(holder.projections):
                    if stack not in stacks:
                        stacks[stack] = self._matrices(layer, expert, stack)
                    matrices |= stacks[stack]
            kept = {name: self.read_kept(name, holder.part) for name in names if name in self.kept}
            found.append((holder, holder.write(matrices) | kept))
        return found

    def read_kept(self, name: str, part: int | None = None) -> Tensor:
        """A tensor of KEPT, or one part of it along its first axis."""
        _require_alike(self.kept[name], self.specs.get(name))
        spec = self.kept[name] if part is None else self.kept[name].part(part)
        return read_tensor(self.folder / _record.KEPT, spec)

    @property
    def scaled(self) -> bool:
        """Whether the checkpoint has static activation scales."""
        return any(name.endswith(".input_scale") for name in self.kept)

    def read(self, name: str, part: int | None = None) -> Tensor:
        """A canonical tensor that no stack holds, or one part of it along its first axis."""
        if name in self.kept:
            return self.read_kept(name, part)
        if name in self.top.specs:
            _require_alike(self.top.specs[name], self.specs.get(name))
        return self.top.read(name, part)

    def others(self) -> Iterator[str]:
        """Canonical tensors that are no expert's, by name."""
        mine = {s.name for layer in self.layers.values() for e in layer.experts for h in e for s in h.item.tensors}
        yield from (name for name in self.specs if name not in mine)

    def pieces_of(self, name: str) -> Iterator[Tensor]:
        """The bytes of such a tensor: uint8, a few MB at a time."""
        if name in self.kept:
            yield self.read_kept(name).reshape(-1).view(torch.uint8)
        elif name in self.top.specs:
            yield from self.top.read_bytes(name)
        else:
            raise CheckpointError(f"{name}: not in {self.folder}; the directory is not complete")

    def close(self) -> None:
        for reader in {id(r): r for r in (self.top, *self.ranks)}.values():
            reader.close()

    def __enter__(self) -> LaidOut:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_alike(found: TensorSpec, planned: TensorSpec | None) -> None:
    """Raises: CheckpointError when what stands there is no tensor of that dtype and shape: a torn or forged file."""
    if planned is None or (found.dtype, found.shape) != (planned.dtype, planned.shape):
        expected = f"{planned.dtype} {list(planned.shape)}" if planned else "no such tensor"
        raise CheckpointError(f"{found}: expected {expected}; the directory is damaged, fetch it again")
