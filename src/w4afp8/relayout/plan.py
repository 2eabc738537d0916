"""What a layout will take, decided from headers alone: ranks, stacks, shards, and every reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from w4afp8 import layouts
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.jobs import check, default
from w4afp8.convert.lay_out import fill_shards
from w4afp8.convert.plan import OUTSIDE
from w4afp8.convert.resources import Needs
from w4afp8.errors import CheckpointError, RecipeError, raise_all
from w4afp8.families._inventory import Item
from w4afp8.families._spec import VECTOR_DTYPES
from w4afp8.formats._spec import WeightFormat
from w4afp8.layouts import _derived, _record
from w4afp8.layouts._experts import Layer, inventory, layers_of, scale_names, sizes_of, static_scales
from w4afp8.layouts._spec import Layout
from w4afp8.layouts._split import Split
from w4afp8.layouts._stack import Stacker

# Memory while one expert moves: its tensors, a byte per nibble, the stored pieces, and both read back.
COPIES = 10
ONE: tuple[tuple[int, ...], ...] = ((), (1,))  # shapes of one number

Shards = Mapping[str, tuple[TensorSpec, ...]]  # file name -> its tensors


@dataclass(frozen=True)
class Unit:
    """What is finished or not, as a whole: one layer, or what stands outside the layers."""

    name: str
    layer: int | None
    carried: Shards  # the source's tensors as they are, and the stacks where there is one rank
    ranks: tuple[Shards, ...]  # the stacks of every rank; empty when there is only one

    @property
    def specs(self) -> Iterable[TensorSpec]:
        for shards in (self.carried, *self.ranks):
            for specs in shards.values():
                yield from specs


@dataclass(frozen=True)
class Order:
    """What was asked for and can be done."""

    reader: CheckpointReader
    out: Path
    layout: Layout
    form: str
    weight: WeightFormat
    items: tuple[Item, ...]
    layers: Mapping[int, Layer]
    scales: Mapping[str, TensorSpec]  # static activation scales of the source
    stackers: tuple[Stacker, ...]  # one for each holding of the layout: the values decide which
    shard_bytes: int
    jobs: int  # experts at a time
    needs: Needs

    @property
    def split(self) -> Split:
        return self.stackers[0].split

    @property
    def expert_tensors(self) -> set[str]:
        """Names that the stacks replace."""
        return {s.name for layer in self.layers.values() for e in layer.experts for h in e for s in h.item.tensors}

    def units(self, stacker: Stacker) -> tuple[Unit, ...]:
        """Every shard of the output, layer by layer."""
        gone = self.expert_tensors | self.scales.keys()
        by_layer: dict[int | None, list[TensorSpec]] = {None: []}
        for layer, spec in self.carried(gone):
            by_layer.setdefault(layer, []).append(spec)
        for number in self.layers:
            by_layer.setdefault(number, [])
        numbers = sorted(n for n in by_layer if n is not None)
        stacks: dict[int | None, list[TensorSpec]] = {n: self._stacks(n, stacker) for n in self.layers}
        alone = self.split.ranks == 1
        top = {n: by_layer[n] + (stacks.get(n, []) if alone else []) for n in (None, *numbers)}
        own = {} if alone else stacks
        top_files, own_files = _files(top, self.shard_bytes), _files(own, self.shard_bytes)
        return tuple(
            Unit(
                OUTSIDE if n is None else f"layer-{n:03d}", n, top_files[n],
                (own_files[n],) * self.split.ranks if n in own_files else (),
            )
            for n in (None, *numbers)
        )  # fmt: skip

    def carried(self, gone: set[str]) -> Iterable[tuple[int | None, TensorSpec]]:
        """(layer, tensor) of everything that is carried."""
        for item in self.items:
            for spec in item.tensors:
                if spec.name not in gone:
                    yield item.expected.layer, TensorSpec(spec.name, spec.dtype, spec.shape)

    def _stacks(self, number: int, stacker: Stacker) -> list[TensorSpec]:
        layer = self.layers[number]
        return [spec for _, _, spec in stacker.specs(layer.stem)] + _derived.specs(stacker, layer, bool(self.scales))


def prepare(
    source: Path,
    layout_name: str,
    out: Path,
    *,
    tp: int,
    ep: int,
    tolerance: float,
    shard_gb: float,
    jobs: int | None = None,
) -> Order:
    """Read the headers and decide everything but what the values decide; nothing is written.

    `jobs` experts are laid out at a time (default: by the cores).

    Raises: RecipeError, CheckpointError, FormatError with every reason.
    """
    if _record.is_laid_out(source):
        raise RecipeError(
            f"{source} has the layout {_record.read(source).layout}; go back first: w4afp8 convert {source} --layout "
            f"{layouts.CANONICAL}, then convert what that writes"
        )
    layout = layouts.get(layout_name)
    reader = CheckpointReader(source)
    scales = static_scales(reader.specs)
    family, items = inventory(reader.config, reader.specs)
    layers = layers_of(family, items.values())
    form, weight, sizes = sizes_of(layers)
    _require_scales(layers, scales)
    holdings = layout.holdings(form)
    if isinstance(holdings, str):
        raise RecipeError(f"{layout.name} does not hold {weight.name} ({form}): {holdings}")
    if tolerance and not all(h.scales.searched for h in holdings):
        raise RecipeError(f"--tolerance: {layout.name} holds scales exactly or not at all; leave it out")
    split = Split(sizes, tp, ep, layout.pad)
    problems = split.refusals()
    if layout.bias is None and any(layer.biases for layer in layers.values()):
        problems.append("this model's experts have biases, and its engines add none")
    stackers = tuple(Stacker(layout, holding, split, tolerance) for holding in holdings)
    problems += [] if problems else stackers[-1].refusals()
    raise_all(problems, RecipeError, f"{layout.name} does not take this checkpoint")
    largest = 3 * sizes.hidden * sizes.intermediate * weight.bits // 8
    order = Order(
        reader, out, layout, form, weight, tuple(items.values()), layers, scales, stackers, int(shard_gb * 1e9),
        default() if jobs is None else check(jobs), _no_needs(),
    )  # fmt: skip
    output = sum(s.span_bytes for unit in order.units(stackers[-1]) for s in unit.specs)
    resident = psutil.Process().memory_info().rss
    return replace(
        order, needs=Needs(resident, {"one expert a job": order.jobs * COPIES * largest}, output=output, state=0)
    )


def _no_needs() -> Needs:
    return Needs(0, {"nothing": 0}, 0, 0)


def _require_scales(layers: Mapping[int, Layer], scales: Mapping[str, TensorSpec]) -> None:
    """A scale that is missing would silently be somebody's default."""
    if not scales:
        return
    wanted = {
        name for layer in layers.values() for e in range(len(layer.experts)) for name in scale_names(layer, e).values()
    }
    missing = [f"{name} is missing" for name in sorted(wanted - scales.keys())[:5]]
    odd = [f"{s}: expected one number" for s in scales.values() if s.dtype not in VECTOR_DTYPES or s.shape not in ONE]
    raise_all(missing + odd[:5], CheckpointError, "not every expert has its static activation scales")


def _files(tensors: Mapping[int | None, list[TensorSpec]], shard_bytes: int) -> dict[int | None, Shards]:
    """Shards numbered through, as checkpoints number theirs."""
    split = {layer: fill_shards(specs, shard_bytes) for layer, specs in tensors.items()}
    total = sum(map(len, split.values()))
    found: dict[int | None, Shards] = {}
    number = 0
    for layer, shards in split.items():
        files = {}
        for specs in shards:
            number += 1
            file = f"model-{number:05d}-of-{total:05d}.safetensors"
            files[file] = tuple(replace(spec, shard=file) for spec in specs)
        found[layer] = files
    return found
