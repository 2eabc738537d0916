"""Proving a directory that `convert` made: every number of it is its source's, whatever format either has.

No format and no family has a rule of its own here, and nothing is multiplied: conversions are exact, so the source's
proof is theirs.  What the source holds is known from the source itself, or from its proof (`beside`).
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch

from w4afp8 import families, formats
from w4afp8._version import __version__
from w4afp8.checkpoint.lineage import CONVERSION, SOURCE_PROOF, Lineage, read_lineage
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES, TensorSpec, raw_bytes
from w4afp8.errors import CheckpointError, FormatError, W4AFP8Error
from w4afp8.families._inventory import Item
from w4afp8.formats._spec import PlainWeight
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate import account, gate, structure, written
from w4afp8.validate import config as configs
from w4afp8.validate.alike import unsound
from w4afp8.validate.beside import Beside, LedBack, Original, new_checks, no_way_back
from w4afp8.validate.findings import Check, Progress, ValidationReport, silent
from w4afp8.validate.matrices import Checkpoint, Held, arranged_for, form_of, read_parts, shares
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import Seal
from w4afp8.validate.statics import Scales, check_positive, read_statics
from w4afp8.validate.values import not_finite

RECONVERT = "convert again, or fetch it again"


def validate_converted(
    folder: Path, against: Path | None = None, on_progress: Progress | None = None
) -> ValidationReport:
    """Prove it, beside `against` (the directory that was converted) or else from the proof that it had.

    What is wrong stands in the report.  Memory is a few matrices.
    Raises: CheckpointError when the *source* is unsound.
    """
    began = time.monotonic()
    name = origin_of(against)["name"] if against else None
    report = ValidationReport(__version__, folder.resolve().name, name, "", None)
    source = CheckpointReader(against) if against is not None else None
    try:
        _Run(folder, report, on_progress or silent, source).all()
    finally:
        if source is not None:
            source.close()
    report.seconds = round(time.monotonic() - began, 3)
    return report


def carried_proof(folder: Path) -> Seal | None:
    """What the proof of the source is about, where `convert` found one and kept it."""
    seal, why = gate.proof_in(folder / SOURCE_PROOF)
    return seal if why is None else None


def needs_source(folder: Path) -> bool:
    """Whether only the source itself can prove the directory, from headers: it had no proof, or none that tells."""
    seal = carried_proof(folder)
    try:
        lineage = read_lineage(folder)
        with CheckpointReader(folder) as reader:
            here = Checkpoint.of(reader.config, reader.specs, formats.checkpoint(lineage.after))
        theirs = Checkpoint.of(lineage.source.config, lineage.source.tensors, formats.checkpoint(lineage.before))
    except W4AFP8Error:
        return False  # the validation says what is wrong
    return seal is None or no_way_back(here, theirs, seal) is not None


class _Run:
    """The checks, and what each needs of the one before."""

    def __init__(
        self, folder: Path, report: ValidationReport, progress: Progress, source: CheckpointReader | None
    ) -> None:
        self.folder, self.report, self.progress, self.source = folder, report, progress, source
        self.record = Check("record", "conversion.json is as it was written, record.json tells of the same")
        self.digests = Check("digests", "every tensor and file has the bytes that the conversion wrote (SHA-256)")
        self.values = Check(
            "values", "every matrix unpacks, numbers are finite, and the scales of int4 weights positive"
        )
        self.numbers, self.carried, self.scales = new_checks()
        self.source_check, self.proof = account.new_source_check(), account.source_proof()
        self.changed: set[str] = set()  # items with other bytes than were written

    def all(self) -> None:
        """Headers first, then every byte once."""
        self.report.checks += [structure.check_finished(self.folder), self.record]
        self.record.examined += 1
        try:
            lineage = read_lineage(self.folder)
            target = formats.checkpoint(lineage.after)
            formats.checkpoint(lineage.before)
        except W4AFP8Error as error:
            self.record.blame(CONVERSION, str(error), "the account of a conversion", RECONVERT)
            self._end("nothing says what was converted")
            return
        self.report.format = target.name
        here = self._structure(lineage, target)
        if here is None:
            self._end("the structure is broken")
            return
        with CheckpointReader(self.folder) as reader:
            scales = self._read_scales(reader, here)
            original = self._original(lineage, here, scales)
            if original is not None:
                self.numbers, self.carried, self.scales = original.numbers, original.carried, original.scales
            self._every_byte(reader, here, lineage, original)
            if original is not None:
                original.finish(scales, self.changed)
                self.report.against, self.report.claim = original.against, original.claim
            if not (scales or self.scales.failed):
                self.scales.idle = "activations are scaled when they are seen, or have 16 bits"
            check_positive(scales, self.scales)
        self._end(None)

    def _end(self, why: str | None) -> None:
        rest = (self.source_check, self.digests, self.values, self.numbers, self.carried, self.scales, self.proof)
        self.report.checks += [check if why is None else check.skip(why) for check in rest]

    def _structure(self, lineage: Lineage, target: CheckpointFormat) -> Checkpoint | None:
        """What the directory holds when its structure holds, else None."""
        index, specs = structure.check_index(self.folder)
        tensors = structure.tensors_check()
        self.report.checks += [index]
        self.report.bytes_out = sum(spec.span_bytes for spec in specs.values())
        try:
            config, unreadable = configs.read_config(self.folder)
            if unreadable:
                raise CheckpointError(unreadable)
            family, sizes = families.of(config), families.of(config).dimensions(config)
            family = arranged_for(family, target)
            tensors, items = structure.check_tensors(specs, family, sizes, target)
            here = Checkpoint(config, family, sizes, target, items)
            self._files(here, specs, lineage)
        except W4AFP8Error as error:
            tensors.blame("config.json", str(error), "a configuration that this program knows", RECONVERT)
        self.report.checks += [tensors]
        return None if index.failed or tensors.failed else here

    def _files(self, here: Checkpoint, specs: dict[str, TensorSpec], lineage: Lineage) -> None:
        target, config = here.format, dict(here.config)
        sixteen = structure.has_sixteen_bit_linears(here.items)
        settings = account.check_settings(config, target, lineage.source.config, sixteen)
        own = target.side_files(config) if not settings.failed else {}
        shards = sorted({spec.shard for spec in specs.values()})
        form = written.check_written(self.folder, sorted(own), shards, {"tool": {"name": written.TOOL}})
        proof = carried_proof(self.folder)
        sides = configs.check_side_files(
            self.folder, own, self.source.folder if self.source else None, _own(self.source)
        )
        if self.source is None and proof is not None:
            account.check_copies(self.folder, proof, sides)
        account.check_record(self.folder, lineage, self.source.folder if self.source else None, self.record)
        self.report.checks += [settings, sides, form]

    def _read_scales(self, reader: CheckpointReader, here: Checkpoint) -> Scales:
        try:
            return read_statics(reader, here)
        except W4AFP8Error as error:
            self.values.blame(here.format.input_scale.file, str(error), "the activation scales", RECONVERT)
            return {}

    def _original(self, lineage: Lineage, here: Checkpoint, scales: Scales) -> Original | None:
        """What is known of the source; where nothing is, every check that needs it says so."""
        before = formats.checkpoint(lineage.before)
        if self.source is not None:
            self.source_check = account.check_source(self.source, lineage)
            if self.source_check.failed:
                self._unknown("--against is another checkpoint than the one that was converted")
                return None
            self.report.bytes_source = sum(spec.span_bytes for spec in self.source.specs.values())
            self.proof = account.source_proof(self.source.folder)
            theirs = Checkpoint.of(self.source.config, self.source.specs, before)
            return Beside(self.source, theirs, str(self.report.against), read_statics(self.source, theirs))
        name, ask = lineage.source.name, f"run `w4afp8 validate DIR --against {lineage.source.hub_id or 'SOURCE'}`"
        seal = carried_proof(self.folder)
        if seal is None:
            self._unknown(f"{name} is not here, and had no proof when it was converted; {ask}")
            return None
        try:
            theirs = Checkpoint.of(lineage.source.config, lineage.source.tensors, before)
            why = no_way_back(here, theirs, seal)
        except W4AFP8Error as error:
            self.record.blame(CONVERSION, f"a source that is none ({error})", "the headers of the source", RECONVERT)
            self._unknown(f"{CONVERSION} does not say what the source was")
            return None
        if why is not None:
            self._unknown(f"{name} is not here, and its proof does not tell: {why}; {ask}")
            return None
        self.source_check.idle = f"{name} is not here, but its proof is"
        self.proof.examined += 1
        self.report.bytes_source = sum(spec.span_bytes for spec in lineage.source.tensors.values())
        return LedBack(theirs, lineage.source, seal, scales)

    def _unknown(self, why: str) -> None:
        if not self.source_check.failed:
            self.source_check.skip(why)
        for check in (self.numbers, self.carried, self.scales, self.proof):
            check.skip("what the source holds is not known")

    def _every_byte(
        self, reader: CheckpointReader, here: Checkpoint, lineage: Lineage, original: Original | None
    ) -> None:
        for done, item in enumerate(here.items.values()):
            self.progress("numbers", done, len(here.items))
            plain = form_of(item).form is PlainWeight
            if original.is_carried(item) if original is not None else plain:
                self._carried(reader, item, lineage, original)
            else:
                self._moved(reader, here, item, lineage, original)
        met = {spec.name for item in here.items.values() for spec in item.tensors}
        for name in sorted(lineage.digests.keys() - met):
            self.digests.blame(name, "no such tensor", "the one that the conversion wrote", RECONVERT)
        account.check_files(self.folder, lineage, self.digests)
        self.progress("numbers", len(here.items), len(here.items))

    def _carried(self, reader: CheckpointReader, item: Item, lineage: Lineage, original: Original | None) -> None:
        """A tensor piece by piece, whatever its size."""
        for number, spec in enumerate(item.tensors):
            theirs = original.pieces(item, number) if original is not None else None
            own, position, differs_at = hashlib.sha256(), 0, None
            self.values.examined += 1
            for piece in reader.read_bytes(spec.name):
                own.update(piece.numpy().data)
                bad = not_finite(piece.view(DTYPES[spec.dtype]))
                if bool(bad.any()):
                    where = position // spec.item_bytes + int(bad.nonzero()[0])
                    self.values.blame(spec.name, f"NaN or infinity, element {where}", "finite numbers", RECONVERT)
                other = next(theirs) if theirs is not None else None
                if other is not None and differs_at is None and not torch.equal(piece, other):
                    differs_at = position + int((piece != other).nonzero()[0])
                position += len(piece)
            self._compare_digest(item, spec, own.hexdigest(), lineage)
            if original is not None:
                original.carry(item, number, own.hexdigest(), differs_at)

    def _moved(
        self, reader: CheckpointReader, here: Checkpoint, item: Item, lineage: Lineage, original: Original | None
    ) -> None:
        """A matrix at a time; of stacked experts one."""
        own = [hashlib.sha256() for _ in item.tensors]
        names = list(here.names(item))
        each = len(item.expected.holds) or 1 if item.expected.stack else 1
        for index in range(item.expected.stack or 1):
            parts = read_parts(reader, Held(item, index))
            for digest, part in zip(own, parts.values(), strict=True):
                digest.update(raw_bytes(part).numpy().data)
            try:
                weights = shares(item, parts)
            except FormatError as error:
                self.values.blame(item.expected.stem + error.suffix, str(error), "a matrix of its format", RECONVERT)
                continue
            for (name, _), weight in zip(names[index * each : (index + 1) * each], weights, strict=True):
                self.values.examined += 1
                said = unsound(weight)
                if said:
                    self.values.blame(name, said, "a sound number", RECONVERT)
                elif original is not None:
                    original.meet(name, weight, item)
        for digest, spec in zip(own, item.tensors, strict=True):
            self._compare_digest(item, spec, digest.hexdigest(), lineage)

    def _compare_digest(self, item: Item, spec: TensorSpec, found: str, lineage: Lineage) -> None:
        self.digests.examined += 1
        wrote = lineage.digests.get(spec.name)
        if wrote != found:
            self.changed.add(item.expected.name)
            told = f"{wrote[:12]}... as the conversion wrote" if wrote else "no such tensor, as the conversion wrote"
            self.digests.blame(spec.name, f"SHA-256 {found[:12]}...", told, account.THEN)


def _own(source: CheckpointReader | None) -> list[str]:
    """What a run of ours left in the source's own folder, and did not hand on."""
    if source is None:
        return []
    own = source.folder / configs.OWN_FOLDER
    names = (path.relative_to(source.folder).as_posix() for path in own.rglob("*")) if own.is_dir() else ()
    return [name for name in names if name != configs.RECIPE]
