"""A converted checkpoint beside its source, two ways to know what the source holds.

`Beside` reads the source itself.  `LedBack` has its proof alone: each matrix is brought back to the source's format,
and the tensors that come out must have the digests that the proof is about.  Both hold a few matrices in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from torch import Tensor

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.header import render_header
from w4afp8.checkpoint.lineage import CONVERSION, Source
from w4afp8.checkpoint.reader import CONFIG, CheckpointReader
from w4afp8.checkpoint.spec import DTYPES, TensorSpec, raw_bytes
from w4afp8.errors import W4AFP8Error
from w4afp8.families._inventory import Item
from w4afp8.formats import _conversion, _rows
from w4afp8.formats._move import move
from w4afp8.formats._spec import AwareWeight, Weight
from w4afp8.validate.alike import difference, made_alone
from w4afp8.validate.findings import Check
from w4afp8.validate.matrices import Checkpoint, Held, Shelf, form_of, is_as_it_was
from w4afp8.validate.seal import FileSeal, Seal
from w4afp8.validate.statics import Scales

AGAIN = "convert again, or give --against the directory that was converted"
CHANGED = "the file changed after the conversion: convert again, or fetch it again"
SOURCE_CHANGED = (
    "these bytes are those that the conversion wrote, so the source changed since, or is another one: fetch the source "
    "again, or convert again"
)
NO_FILE = FileSeal(0, 0, "")


class Original(Protocol):
    """What is known of the source."""

    against: str
    claim: str  # what holds when every check does
    numbers: Check
    carried: Check
    scales: Check

    def is_carried(self, item: Item) -> bool:
        """Whether the source has this very item, byte for byte."""

    def pieces(self, item: Item, number: int) -> Iterator[Tensor] | None:
        """The source's bytes of one of the tensors of an item that was carried, where they can be read."""

    def carry(self, item: Item, number: int, digest: str, differs_at: int | None) -> None:
        """Such a tensor was met: its digest, and the first byte that is not the source's."""

    def meet(self, name: str, weight: Weight, item: Item) -> None:
        """A matrix that was moved was met; it stands in `item`."""

    def finish(self, scales: Scales, changed: Collection[str]) -> None:
        """Everything was met; `scales` stand here, `changed` are the items with other bytes than were written."""


def new_checks() -> tuple[Check, Check, Check]:
    """What every way tests."""
    return (
        Check("numbers", "every matrix that moved holds the source's numbers"),
        Check("carried", "everything else has the source's bytes"),
        Check("input scales", "activation scales are positive, and the source's"),
    )


class Beside:
    """The source is at hand."""

    def __init__(self, reader: CheckpointReader, checkpoint: Checkpoint, name: str, scales: Scales) -> None:
        self.checkpoint, self.against, self._reader, self._scales = checkpoint, name, reader, scales
        self.numbers, self.carried, self.scales = new_checks()
        self.claim = f"every number is that of {name}, and what was carried has its bytes"
        self._shelf = Shelf(reader, checkpoint)
        self._left = set(self._shelf.held)
        self._found: list[tuple[Check, str, str, str, str]] = []  # check, item, who, found, expected

    def is_carried(self, item: Item) -> bool:
        theirs = self.checkpoint.items.get(item.expected.name)
        return theirs is not None and is_as_it_was(item, theirs)

    def pieces(self, item: Item, number: int) -> Iterator[Tensor]:
        return self._reader.read_bytes(self.checkpoint.items[item.expected.name].tensors[number].name)

    def carry(self, item: Item, number: int, digest: str, differs_at: int | None) -> None:
        self.carried.examined += 1
        theirs = self.checkpoint.items[item.expected.name]
        self._left.difference_update(name for name, _ in self.checkpoint.names(theirs))
        if differs_at is not None:
            found = f"a byte that differs, number {differs_at}"
            self._found.append((self.carried, item.expected.name, item.tensors[number].name, found, "the byte"))

    def meet(self, name: str, weight: Weight, item: Item) -> None:
        self.numbers.examined += 1
        if name not in self._left:
            self.numbers.blame(name, "it", f"no such matrix, as in {self.against}", AGAIN)
            return
        self._left.remove(name)
        said = difference(weight, self._shelf.read(name))
        if said:
            self._found.append((self.numbers, item.expected.name, name, *said))

    def finish(self, scales: Scales, changed: Collection[str]) -> None:
        for check, item, who, found, expected in self._found:
            check.blame(who, found, f"{expected} as in {self.against}", CHANGED if item in changed else SOURCE_CHANGED)
        for name in sorted(self._left):
            self.numbers.blame(name, "nothing", f"the matrix of {self.against}", AGAIN)
        for key in sorted(scales.keys() | self._scales.keys()):
            self.scales.examined += 1
            mine, theirs = (repr(float(s[key])) if key in s else "nothing" for s in (scales, self._scales))
            if mine != theirs:
                self.scales.blame(f"{key[0]}.{key[1]}.input_scale", mine, f"{theirs} as in {self.against}", AGAIN)


def no_way_back(here: Checkpoint, source: Checkpoint, proof: Seal) -> str | None:
    """Why the source's bytes do not follow from what stands here, or None where they do."""
    if hashlib.sha256(atomic.as_json(source.config)).hexdigest() != proof.files.get(CONFIG, NO_FILE).sha256:
        return f"the {CONFIG} that it is about is not the one that {CONVERSION} has, to the byte"
    theirs = source.held()
    forms = {}
    for name, held in here.held().items():
        if name in theirs and held.item.format is not None and theirs[name].item.format is not None:
            forms[form_of(held.item).name, form_of(theirs[name].item).name] = name
    for (mine, was), name in forms.items():
        refusal = None if mine == was else _conversion.judge(mine, was).refusal
        if refusal:
            return f"{name} stands in {mine}, and the bytes that it had in {was} do not follow from it"
    return None


class LedBack:
    """The proof of the source is at hand: the digests of its tensors (`proven`) and files."""

    def __init__(self, checkpoint: Checkpoint, source: Source, proof: Seal, scales: Scales) -> None:
        """`scales` are the activation scales that stand here: some formats keep them beside each matrix."""
        self.checkpoint, self.against, self._source = checkpoint, source.name, source
        self.numbers, self.carried, self.scales = new_checks()
        self.claim = (
            f"led back to {checkpoint.format.name}, every tensor has the bytes with which {source.name} was proven"
        )
        self._proven, self._proof, self._beside = dict(proof.tensors), proof, scales
        self._held = checkpoint.held()
        self._waiting: dict[tuple[str, int], dict[int, Weight]] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._parts: dict[str, int] = {}

    def is_carried(self, item: Item) -> bool:
        theirs = self.checkpoint.items.get(item.expected.name)
        return theirs is not None and is_as_it_was(item, theirs)

    def pieces(self, item: Item, number: int) -> None:
        return None

    def carry(self, item: Item, number: int, digest: str, differs_at: int | None) -> None:
        self.carried.examined += 1
        self._compare(self.checkpoint.items[item.expected.name].tensors[number].name, digest, self.carried)

    def meet(self, name: str, weight: Weight, item: Item) -> None:
        self.numbers.examined += 1
        held = self._held.get(name)
        if held is None:
            self.numbers.blame(name, "it", f"no such matrix, as in {self.against}", AGAIN)
            return
        expected = held.item.expected
        key = (expected.name, held.index)
        said = made_alone(weight) if isinstance(weight, AwareWeight) else None
        if said and form_of(held.item).form is not AwareWeight:
            self.numbers.blame(name, *said, AGAIN)
        together = self._waiting.setdefault(key, {})
        together[held.share] = weight
        if len(together) < (len(expected.holds) or 1):
            return
        del self._waiting[key]
        try:
            self._pack(name, held, [together[share] for share in sorted(together)])
        except W4AFP8Error as error:
            self.numbers.blame(name, str(error), f"numbers that {self.checkpoint.format.name} holds", AGAIN)

    def _pack(self, name: str, held: Held, weights: list[Weight]) -> None:
        form, expected = form_of(held.item), held.item.expected
        stem, _, projection = name.removesuffix(".weight").rpartition(".")
        scale = self._beside.get((stem, projection))
        joined = _rows.join([move(weight, form.form, scale) for weight in weights], expected.interleaved)
        parts = form.pack(joined)
        for part, spec in zip(form.parts, held.item.tensors, strict=True):
            own = self._digests.setdefault(spec.name, hashlib.sha256())
            tensor = parts[part.suffix].to(DTYPES[spec.dtype])
            own.update(raw_bytes(tensor).numpy().data)
            self._parts[spec.name] = self._parts.get(spec.name, 0) + 1
            if self._parts[spec.name] == (expected.stack or 1):
                self._compare(spec.name, own.hexdigest(), self.numbers)

    def _compare(self, name: str, digest: str, check: Check) -> None:
        said = self._proven.pop(name, None)
        if said != digest:
            check.blame(
                name, f"led back, SHA-256 {digest[:12]}...",
                f"{said[:12]}... as {self.against} was proven with" if said else f"a tensor that {self.against} has",
                "the file changed after the conversion, or the source after its proof: convert again",
            )  # fmt: skip

    def finish(self, scales: Scales, changed: Collection[str]) -> None:
        rule = self.checkpoint.format.input_scale
        self.scales.examined += len(scales)
        named = {rule.tensor_name(*key): value for key, value in scales.items() if key[1] in rule.names}
        proven_with = self._proof.files.get(rule.file, NO_FILE).sha256  # whatever the record says that it kept
        if rule.indexed and not rule.within:
            for name in named.keys() & self._source.tensors.keys():
                raw = _as(self._source.tensors[name], named[name])
                self._compare(name, hashlib.sha256(raw).hexdigest(), self.scales)
        elif rule.names and not rule.within and self._rendered(named) != proven_with:
            self.scales.blame(rule.file, "other scales", f"those that {self.against} was proven with", AGAIN)
        for name in self._proven:
            self.numbers.blame(name, "nothing that becomes it", f"the tensor of {self.against}", AGAIN)

    def _rendered(self, named: Mapping[str, Tensor]) -> str | None:
        """The digest of the file that would hold these scales: none of none."""
        specs = list(self._source.kept.values())
        if not specs and not named:
            return NO_FILE.sha256
        if any(spec.name not in named for spec in specs):
            return None
        whole = hashlib.sha256(render_header(specs, {"format": "pt"})[0])
        for spec in specs:
            whole.update(_as(spec, named[spec.name]))
        return whole.hexdigest()


def _as(spec: TensorSpec, value: Tensor) -> bytes:
    """The bytes of a number in the dtype of `spec`."""
    return raw_bytes(value.to(DTYPES[spec.dtype])).numpy().tobytes()
