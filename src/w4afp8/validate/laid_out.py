"""What a directory in a layout promises of its bytes, and what tests each promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.header import read_header, render_header
from w4afp8.checkpoint.reader import CONFIG, INDEX, refuse_link_out
from w4afp8.checkpoint.spec import TensorSpec, raw_bytes
from w4afp8.errors import W4AFP8Error
from w4afp8.layouts import _derived, _record, _written
from w4afp8.layouts._directory import LaidOut
from w4afp8.layouts._experts import Layer
from w4afp8.layouts._record import Record
from w4afp8.layouts._spec import STACKS
from w4afp8.layouts._split import folder_of
from w4afp8.layouts._stack import Matrix
from w4afp8.numerics.bytewise import same_bytes
from w4afp8.validate import gate, seal
from w4afp8.validate.findings import Check, Progress
from w4afp8.validate.restored import Restored

VALIDATE_FIRST = "validate the canonical checkpoint, then convert it again"
THEN = "the directory changed after it was written: convert the canonical checkpoint again, or fetch it again"


class LayoutChecks:
    """Every promise, and what tests it."""

    def __init__(self) -> None:
        self.record = Check("record", "layout.json is as it was written, and headers and indexes can be read")
        self.form = Check("written form", "headers, indexes and configs are those that this layout and split have")
        self.canonical = Check(
            "canonical", "every tensor, shard and file of the canonical checkpoint comes out byte for byte"
        )
        self.stacks = Check("stacks", "every stack holds these experts, its padding is zero, and nothing else")
        self.derived = Check("scales and biases", "each rank's activation scales and biases are those of its experts")
        self.strange = Check("strangers", "no file is there that the layout does not have")
        self.proven = Check("canonical proof", "the canonical checkpoint was proven by w4afp8 validate")
        self.all = [self.record, self.form, self.canonical, self.stacks, self.derived, self.strange, self.proven]

    def run(self, laid: LaidOut, progress: Progress) -> None:
        """What the bytes alone decide."""
        self._record(laid)
        self._form(laid)
        self._strangers(laid)
        self._restore(laid, progress)
        self._derived(laid)

    def _restore(self, laid: LaidOut, progress: Progress) -> None:
        """The canonical checkpoint made again, and every expert laid out again from what was taken out."""
        done, total = 0, sum(len(layer.experts) for layer in laid.layers.values())

        def seen(layer: Layer, expert: int, matrices: Mapping[str, Matrix]) -> None:
            nonlocal done
            self._expert(laid, layer, expert, matrices)
            done += 1
            progress("experts", done, total)

        record = laid.record
        restored = Restored(laid, seen)
        shards = dict(restored.shards())
        for name, digest in record.tensors.items():
            self._compare(name, restored.tensors.get(name), digest)
        for shard, said in record.shards.items():
            self._compare(shard, shards[shard], said["sha256"])
        self._compare("the checksum of all shards", _record.canonical_checksum(shards), record.canonical)

    def _compare(self, name: str, found: str | None, digest: str) -> None:
        self.canonical.examined += 1
        if found != digest:
            self.canonical.blame(name, f"{found[:12]}..." if found else "nothing", f"SHA-256 {digest[:12]}...", THEN)

    def _expert(self, laid: LaidOut, layer: Layer, expert: int, matrices: Mapping[str, Matrix]) -> None:
        ep_rank = expert // laid.split.local_experts
        for stack in STACKS:
            for tp_rank in range(laid.split.tp):
                self.stacks.examined += 1
                found = laid.stored(layer, expert, stack, tp_rank)
                tag = folder_of(laid.split.rank(ep_rank, tp_rank), laid.split.ranks)
                who = (
                    f"{tag}/{layer.stem}.{stack} of expert {expert}"
                    if tag
                    else f"{layer.stem}.{stack} of expert {expert}"
                )
                try:
                    expected = laid.stacker.store(stack, matrices, tp_rank)
                except W4AFP8Error as error:
                    self.stacks.blame(who, str(error), "scales that the layout holds", THEN)
                    continue
                for suffix, tensor in expected.items():
                    where = _first_difference(found[suffix], tensor)
                    if where is not None:
                        self.stacks.blame(f"{who}, {suffix or 'codes'}", f"byte {where} differs", "what its experts "
                                          "give, with zeros as padding", THEN)  # fmt: skip

    def _form(self, laid: LaidOut) -> None:
        ranks = laid.split.ranks
        stacks = [spec for layer in laid.layers.values() for spec in _stack_specs(laid, layer)]
        carried = [laid.specs[name] for name in laid.others() if name not in laid.kept]
        places: list[tuple[str, int | None, list[TensorSpec]]]
        places = [("", None, [*carried, *stacks] if ranks == 1 else carried)]
        places += [(folder_of(rank, ranks), rank, stacks) for rank in range(ranks)] if ranks > 1 else []
        for tag, rank, expected in places:
            reader = laid.top if rank is None else laid.ranks[rank]
            here = f"{tag}/" if tag else ""
            wanted = {spec.name: (spec.dtype, spec.shape) for spec in expected}
            for name in wanted.keys() | reader.specs.keys():
                self.form.examined += 1
                spec = reader.specs.get(name)
                found = (spec.dtype, spec.shape) if spec else None
                if found != wanted.get(name):
                    self.form.blame(here + name, found or "no such tensor", wanted.get(name) or "no such tensor", THEN)
            content = {
                INDEX: _written.index(reader.specs.values()),
                CONFIG: _written.config(laid.record, laid.config, laid.split, rank),
            }
            for file, value in content.items():
                self.form.examined += 1
                path = reader.folder / file  # an index may be missing where a model.safetensors stands
                if not path.is_file() or path.read_bytes() != atomic.as_json(value):
                    self.form.blame(here + file, "other bytes", "what the record and the headers say", THEN)
            for shard in reader.shards:
                self._header(reader.shard_path(shard), here + shard, laid.record.metadata)
        if laid.kept:
            self._header(laid.folder / _record.KEPT, _record.KEPT, {})

    def _header(self, path: Path, name: str, metadata: Mapping[str, str]) -> None:
        self.form.examined += 1
        header, _ = render_header(read_header(path)[0], {"format": "pt", **metadata})
        with path.open("rb") as raw:
            if raw.read(len(header)) != header:
                self.form.blame(name, "another header", "the one that was written", THEN)

    def files(self, folder: Path, record: Record) -> None:
        """What is kept as it was, before anything in it is believed."""
        for name, digest in record.copies.items():
            path = folder / name
            refuse_link_out(folder, path)
            self._compare(name, seal.digest(path) if path.is_file() else None, digest)

    def _strangers(self, laid: LaidOut) -> None:
        known = {_record.RECORD, _record.KEPT, INDEX, CONFIG, *laid.top.shards, *laid.record.copies}
        for rank, reader in enumerate(laid.ranks):
            tag = folder_of(rank, laid.split.ranks)
            known |= {f"{tag}/{name}" for name in (INDEX, CONFIG, *reader.shards)} if tag else set()
        for name in seal.sealed_files(laid.folder):
            self.strange.examined += 1
            if name not in known:
                self.strange.blame(name, "a file", "nothing of that name", "remove it, or publish it elsewhere")

    def _record(self, laid: LaidOut) -> None:
        """The record says of the layout what the layout says of itself: a checksum alone is soon made."""
        record, layout = laid.record, laid.stacker.layout
        promised = {
            "read_by": layout.read_by,
            "sizes": laid.split.described(),
            "w13": layout.halves(),
            "notes": laid.split.notes(),
        }
        for field, value in promised.items():
            self.record.examined += 1
            if getattr(record, field) != value:
                self.record.blame(f"{_record.RECORD}: {field}", repr(getattr(record, field)), repr(value), THEN)
        self.record.examined += 1
        if (laid.folder / _record.RECORD).read_bytes() != record.render():
            self.record.blame(_record.RECORD, "another form", "the form in which it was written", THEN)

    def _derived(self, laid: LaidOut) -> None:
        for layer in laid.layers.values():
            names = [spec.name for spec in _derived.specs(laid.stacker, layer, laid.scaled)]
            for rank, reader in enumerate(laid.ranks if names else ()):
                values = _derived.values(laid.stacker, layer, laid.scaled, rank, laid.read)
                for name, value in zip(names, values, strict=True):
                    self.derived.examined += 1
                    if name not in reader.specs or _first_difference(reader.read(name), value) is not None:
                        self.derived.blame(f"{name} of rank {rank}", "other numbers", "those of its experts", THEN)
        if not self.derived.examined:
            self.derived.idle = "this layout or this checkpoint has none"

    def proof(self, laid: LaidOut, against: Path | None) -> None:
        """The verdict that was kept with the canonical bytes, or stands in the canonical directory now."""
        self.proven.examined += 1
        place = against or laid.folder / _record.FILES
        proof, why = gate.proof_in(place / seal.VALIDATION)
        if against is not None:
            shards = {n: against / n for n in laid.record.shards if (against / n).is_file()}
            digests = {name: found.sha256 for name, (found, _) in seal.seal_files(shards)}
            if _record.canonical_checksum(digests) != laid.record.canonical:
                self.proven.blame(
                    against.name, "another checkpoint", f"the canonical one, {laid.record.canonical}",
                    "give --against the directory that was converted",
                )  # fmt: skip
                return
        if why is not None or proof is None:
            self.proven.skip(f"{why}; validate the canonical checkpoint, then convert it, or give it as --against")
            return
        if dict(proof.tensors) != laid.record.tensors:
            self.proven.blame(seal.VALIDATION, "a verdict about other tensors", "one about these", VALIDATE_FIRST)
        for name in sorted(laid.record.files.keys() - set(seal.ABOUT)):
            said = proof.files.get(name)
            if said is None or said.sha256 != laid.record.files[name]["sha256"]:
                found = "a verdict about other bytes" if said else "a verdict that knows no such file"
                self.proven.blame(name, found, "one about these", VALIDATE_FIRST)


def _stack_specs(laid: LaidOut, layer: Layer) -> Iterator[TensorSpec]:
    yield from (spec for _, _, spec in laid.stacker.specs(layer.stem))
    yield from _derived.specs(laid.stacker, layer, laid.scaled)


def _first_difference(one: Tensor, other: Tensor) -> int | None:
    """The first byte that differs, or None."""
    if same_bytes(one, other):
        return None
    mine, theirs = raw_bytes(one), raw_bytes(other)
    if mine.shape != theirs.shape:
        return 0
    bad = (mine != theirs).nonzero()
    return int(bad[0]) if len(bad) else None
