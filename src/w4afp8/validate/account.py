"""What a conversion says of itself beside what stands here: config, files, and the source that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w4afp8 import families
from w4afp8.checkpoint.lineage import Lineage, bare, read_lineage
from w4afp8.checkpoint.reader import CONFIG, CheckpointReader
from w4afp8.errors import W4AFP8Error
from w4afp8.families._inventory import format_of_experts
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate import gate
from w4afp8.validate.config import NOT_COPIED, OWN_FOLDER, RECORD, WEIGHT_FILES, check_config, read_record
from w4afp8.validate.findings import Check
from w4afp8.validate.seal import Seal, digest

CHANGED_KEYS = ("quantization_config", "expert_dtype")  # of config.json, by a conversion
COUNTED = ("bits_per_weight", "tensors_by_role")  # of record.json, anew by a conversion
THEN = "the file changed after the conversion: convert again, or fetch it again"


def check_settings(
    config: Mapping[str, Any], target: CheckpointFormat, source: Mapping[str, Any], sixteen: bool
) -> Check:
    """config.json as engines of the target must read it, and otherwise as the source's was."""
    check = check_config(config, target, source, sixteen=sixteen, changed=CHANGED_KEYS)
    says = families.of(config).says_expert_dtype
    wanted = {"expert_dtype": target.expert_dtype if says else None}
    found, engines = config.get("quantization_config"), target.config_for(config, sixteen)
    if not engines:
        wanted["quantization_config"] = None  # an explicit null crashes some loaders, another format misleads all
    for key, said in sorted(found.items()) if isinstance(found, dict) else ():
        if key not in engines:
            check.blame(f"{CONFIG} quantization_config.{key}", repr(said), "no such field", "convert again")
    for key, value in wanted.items():
        check.examined += 1
        if config.get(key) != value or (value is None and key in config):
            check.blame(f"{CONFIG} {key}", repr(config.get(key)), repr(value), "the engine would load another format")
    return check


def check_files(folder: Path, lineage: Lineage, check: Check) -> None:
    """Every file that is no shard, beside the digest that it was written with."""
    for name, expected in lineage.files.items():
        check.examined += 1
        path = folder / name
        found = digest(path) if path.is_file() else None
        if found != expected:
            told = f"SHA-256 {found[:12]}..." if found else "no such file"
            check.blame(name, told, f"{expected[:12]}... as the conversion wrote", THEN)


def check_record(folder: Path, lineage: Lineage, source: Path | None, check: Check) -> None:
    """record.json, from which the card and the report are written: the source's, but for what stands here now."""
    record = read_record(folder)
    wanted: dict[str, Any] = {"format": lineage.after, "digests": dict(lineage.digests)}
    if source is not None and (source / RECORD).is_file():
        theirs = read_record(source)
        wanted |= {key: theirs.get(key) for key in {*record, *theirs} - {*wanted, *COUNTED}}
    for key, value in sorted(wanted.items()):
        check.examined += 1
        if record.get(key) != value:
            check.blame(f"{RECORD} {key}", "another account", "that of these tensors, and the source's", THEN)


def check_source(reader: CheckpointReader, lineage: Lineage) -> Check:
    """Whether a directory is the one that was converted, by its headers and its config."""
    check = new_source_check()
    name, said = reader.folder.resolve().name, lineage.source
    form = format_of(reader)
    check.examined += 1
    if form != lineage.before:
        check.blame(
            name, f"experts in {form}", f"in {lineage.before}, as those of {said.name}",
            "give --against the directory that was converted",
        )  # fmt: skip
        return check
    here = bare(reader.specs.values())
    for tensor in sorted(here.keys() | said.tensors.keys()):
        check.examined += 1
        mine, theirs = (str(specs[tensor]) if tensor in specs else "no such tensor" for specs in (here, said.tensors))
        if mine != theirs:
            check.blame(
                f"{tensor} of {name}", mine, f"{theirs}, as when it was converted",
                "the source changed since, or is another one: convert again, or give the one that was converted",
            )  # fmt: skip
    for key in sorted({*reader.config, *said.config}):
        check.examined += 1
        if reader.config.get(key) != said.config.get(key):
            check.blame(
                f"{CONFIG} {key} of {name}", repr(reader.config.get(key)), f"{said.config.get(key)!r}, as when it was "
                "converted", "the source changed since, or is another one: convert again",
            )  # fmt: skip
    return check


def is_source(folder: Path, converted: Path) -> bool:
    """Whether `folder` is what `converted` was made from, by headers and config: a name alone may be another's."""
    try:
        with CheckpointReader(folder) as reader:
            return not check_source(reader, read_lineage(converted)).failed
    except W4AFP8Error:
        return False


def format_of(reader: CheckpointReader) -> str:
    """What the experts of a checkpoint stand in.  Raises: CheckpointError, FormatError when nothing reads them."""
    family = families.of(reader.config)
    sizes = family.dimensions(reader.config)
    found = format_of_experts(families.arranged(family, sizes, reader.specs), sizes, reader.specs)
    return found.name if found else "no format"


def new_source_check() -> Check:
    """The check of `check_source` before it ran."""
    return Check("source", "the source is the directory that was converted")


def source_proof(folder: Path | None = None) -> Check:
    """Whether the source at hand was proven; one that no run of ours made is what its publisher says."""
    check = Check("source proof", "the source was proven, or is its publisher's own")
    if folder is not None:
        check.examined += 1
        found = gate.state(folder) if (folder / OWN_FOLDER).is_dir() else None
        if found is not None and found.state is not gate.State.PROVEN:
            check.skip(
                f"{folder.name}, which was converted, is {found}; validate it beside its own source, then this again"
            )
    return check


def check_copies(folder: Path, proof: Seal, check: Check) -> None:
    """The side files beside those that the source was proven with, where the source is not at hand."""
    for name, seal in proof.files.items():
        own = name.startswith(f"{OWN_FOLDER}/") or name in NOT_COPIED
        if own or WEIGHT_FILES.search(name):
            continue
        check.examined += 1
        path = folder / name
        if not path.is_file() or digest(path) != seal.sha256:
            check.blame(name, "other bytes" if path.is_file() else "no such file", "the source's", THEN)
