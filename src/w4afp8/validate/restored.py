"""The canonical checkpoint streamed out of a layout in the order of its files, and nothing of it kept but digests.

What `convert --layout canonical` would write is hashed instead, so every shard's SHA-256 is that of the bytes that come
back, and no second copy is needed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor

from w4afp8.checkpoint.spec import raw_bytes
from w4afp8.layouts._directory import LaidOut
from w4afp8.layouts._experts import Holder, Layer
from w4afp8.layouts._stack import Matrix

# Experts that stay at hand: files that hold all scales before all codes ask for the same expert again.
KEPT_BYTES = 256 << 20

Taken = list[tuple[Holder, dict[str, Tensor]]]
Seen = Callable[[Layer, int, dict[str, Matrix]], None]  # layer, expert, its matrices by projection


class Restored:
    """Digests of every canonical shard and tensor.

    `on_expert` is told of each expert once, when it is first taken out of its stacks; meanwhile the next one is.
    Memory is `KEPT_BYTES`, or two experts where they are larger, and the next one.
    """

    def __init__(self, laid: LaidOut, on_expert: Seen) -> None:
        self.laid, self._on_expert = laid, on_expert
        self.tensors: dict[str, str] = {}
        self._places: dict[str, list[tuple[Layer, int]]] = {}  # of an expert's tensor: where its bytes are, in order
        for layer in laid.layers.values():
            for expert, holders in enumerate(layer.experts):
                for spec in (spec for holder in holders for spec in holder.item.tensors):
                    self._places.setdefault(spec.name, []).append((layer, expert))
        self._at_hand: OrderedDict[tuple[int, int], dict[str, Tensor]] = OrderedDict()
        self._told: set[tuple[int, int]] = set()
        self._uses: list[tuple[Layer, int]] = []  # of experts, in the order of their bytes
        self._used = 0
        self._coming: dict[tuple[int, int], Future[Taken]] = {}

    def shards(self) -> Iterator[tuple[str, str]]:
        """(shard, SHA-256) of each; its tensors' digests stand in `tensors` then.

        Raises: CheckpointError, FormatError when a stack or a carried tensor cannot be read.
        """
        by_shard: dict[str, list[str]] = {shard: [] for shard in self.laid.record.shards}
        for spec in sorted(self.laid.specs.values(), key=lambda spec: (spec.begin, spec.span_bytes)):
            by_shard[spec.shard].append(spec.name)
        self._uses = [place for names in by_shard.values() for name in names for place in self._places.get(name, ())]
        self._used = 0
        # Digests of a piece, and the next expert taken out of its stacks, while this one is laid out again.
        with ThreadPoolExecutor(2) as beside, ThreadPoolExecutor(1) as self._taking:
            for shard, names in by_shard.items():
                whole = hashlib.sha256(self.laid.header(shard).read_bytes())
                at_work: list[Future[None]] = []
                for name in names:
                    own = hashlib.sha256()
                    for piece in self._pieces(name):
                        data = piece.numpy().data
                        wait(at_work)
                        at_work = [beside.submit(digest.update, data) for digest in (whole, own)]
                    wait(at_work)
                    self.tensors[name] = own.hexdigest()
                yield shard, whole.hexdigest()

    def _pieces(self, name: str) -> Iterator[Tensor]:
        if name not in self._places:
            yield from self.laid.pieces_of(name)
            return
        for layer, expert in self._places[name]:
            self._used += 1
            yield raw_bytes(self._expert(layer, expert)[name])

    def _expert(self, layer: Layer, expert: int) -> dict[str, Tensor]:
        """The canonical tensors of one expert, or its part of those that experts share."""
        key = layer.number, expert
        if key in self._at_hand:
            self._at_hand.move_to_end(key)
            return self._at_hand[key]
        found: dict[str, Tensor] = {}
        matrices: dict[str, Matrix] = {}
        taken = self._take(layer, expert).result()
        del self._coming[key]
        self._take_next()
        for holder, tensors in taken:
            found |= tensors
            if key not in self._told:
                matrices |= holder.matrices(tensors)
        if key not in self._told:
            self._told.add(key)
            self._on_expert(layer, expert, matrices)
        most = max(2, KEPT_BYTES // max(1, sum(tensor.nbytes for tensor in found.values())))
        while len(self._at_hand) >= most:
            self._at_hand.popitem(last=False)
        self._at_hand[key] = found
        return found

    def _take(self, layer: Layer, expert: int) -> Future[Taken]:
        key = layer.number, expert
        if key not in self._coming:
            self._coming[key] = self._taking.submit(self.laid.tensors, layer, expert)
        return self._coming[key]

    def _take_next(self) -> None:
        """Begin with the expert that is used after this one, if it is not at hand."""
        now = self._uses[self._used - 1]
        for at in range(self._used, len(self._uses)):
            if self._uses[at] != now:
                layer, expert = self._uses[at]
                if (layer.number, expert) not in self._at_hand:
                    self._take(layer, expert)
                return
