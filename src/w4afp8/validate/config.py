"""What an engine reads before any tensor: config.json, the side files, and the tool's own record."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from w4afp8 import formats
from w4afp8.checkpoint.lineage import CONVERSION
from w4afp8.checkpoint.reader import CONFIG, INDEX, SINGLE, read_json
from w4afp8.errors import CheckpointError, W4AFP8Error
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate.findings import Check

OWN_FOLDER = "w4afp8"  # recipe, record and recorded inputs of the run that made the directory
RECORD = f"{OWN_FOLDER}/record.json"
RECIPE = f"{OWN_FOLDER}/recipe.yaml"
FIRST = formats.target("sglang_w4afp8")  # what a directory is held against that says nothing of ours
CHANGED_KEYS = ("quantization_config", "num_nextn_predict_layers")  # what a conversion may change in config.json
# README.md: a card describes one checkpoint, and no engine reads it; `w4afp8 card` writes the output's own.
NOT_COPIED = (CONFIG, INDEX, SINGLE, "hf_quant_config.json", "quant_cfg.json", "README.md")
WEIGHT_FILES = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx)$")


def target_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> CheckpointFormat:
    """The format that the directory claims: by its quant_method, else by its record, else the first there is.

    Raises: CheckpointError for a format that only `convert` writes: what it wrote is proven by `converted`.
    """
    found = formats.announced(config)
    if found is not None and found.quantizable:
        return found
    if found is not None and found.scheme == FIRST.scheme:
        raise CheckpointError(
            f"config.json says {found.name}, and no {CONVERSION} says what it was made from: of this format validate "
            f"proves what w4afp8 convert made; convert the directory to {FIRST.name} and validate that, every number "
            "stays as it is"
        )
    recorded = record.get("format")
    return formats.target(recorded) if recorded in formats.targets() else FIRST


def read_record(folder: Path) -> dict[str, Any]:
    """The run's record, or nothing when there is none (then no fold is accepted)."""
    return read_json(folder / RECORD) if (folder / RECORD).exists() else {}


def check_config(
    config: Mapping[str, Any],
    target: CheckpointFormat,
    source: Mapping[str, Any] | None,
    ours: bool = True,
    sixteen: bool = False,
    changed: Collection[str] = CHANGED_KEYS,
) -> Check:
    """The fields by which engines choose the format, and everything else as the source has it.

    `sixteen`: the linears beside the experts have 16 bits, of which some formats' config speaks.  Another tool's
    directory (not `ours`) may leave out the fields that no engine reads, but must not contradict them.  `changed`
    are the fields in which it may differ from the source's.
    """
    check = Check("config", "config.json says what the engine must hear, and otherwise what the source says")
    found = config.get("quantization_config")
    for key, value in target.config_for(config, sixteen).items():
        check.examined += 1
        got = found.get(key) if isinstance(found, dict) else None
        if got != value and (ours or got is not None or key == "quant_method"):
            check.blame(
                f"{CONFIG} quantization_config.{key}", repr(got), repr(value), "the engine would load another format"
            )
    if source is None:
        return check
    for key in sorted({*config, *source} - set(changed)):
        check.examined += 1
        if config.get(key) != source.get(key):
            check.blame(f"{CONFIG} {key}", repr(config.get(key)), f"{source.get(key)!r} as in the source", "restore it")
    layers, before = (c.get("num_nextn_predict_layers", 0) for c in (config, source))
    if layers not in (before, 0):
        check.blame(f"{CONFIG} num_nextn_predict_layers", layers, f"{before}, or 0 when dropped", "restore it")
    return check


def check_side_files(
    folder: Path, own_files: Mapping[str, Any], source: Path | None, left: Collection[str] = ()
) -> Check:
    """Every JSON file parses, the format's own files say what it promises, the source's files are unchanged.

    `left` are files of the source that the directory has its own of.
    """
    check = Check("side files", "tokenizer, generation settings and the format's own files are whole")
    contents: dict[str, Any] = {}
    own = folder / OWN_FOLDER
    for path in sorted([*folder.glob("*.json"), *own.glob("*.json")]):
        check.examined += 1
        name = path.relative_to(folder).as_posix()
        if not path.is_file():  # a folder, a pipe that would never answer
            check.blame(name, "no file", "a JSON file", "copy it again")
            continue
        try:
            contents[name] = json.loads(path.read_text())
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            check.blame(name, f"no JSON ({error})", "a JSON file", "copy it again")
    for name, expected in own_files.items():
        check.examined += 1
        if not (folder / name).exists():
            check.blame(name, "no such file", "it beside config.json", "some engines choose the format by it")
        elif name in contents and contents[name] != expected:
            check.blame(name, "other content", "what config.json implies", "remake the checkpoint")
    if source is not None:
        _compare_with_source(folder, source, {*own_files, *NOT_COPIED, *left}, check)
    return check


def _compare_with_source(folder: Path, source: Path, own: set[str], check: Check) -> None:
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        relative = path.relative_to(source)
        name = relative.as_posix()
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or name in own or WEIGHT_FILES.search(name):
            continue
        check.examined += 1
        copy = folder / relative
        if not copy.is_file():
            check.blame(name, "no such file", "the source's, copied", "copy it from the source")
        elif copy.read_bytes() != path.read_bytes():
            check.blame(name, "other bytes", "the source's, byte for byte", "copy it from the source again")


def read_config(folder: Path) -> tuple[dict[str, Any], str | None]:
    """config.json and None, or nothing and why it cannot be read."""
    try:
        return read_json(folder / CONFIG), None
    except W4AFP8Error as error:
        return {}, str(error)
