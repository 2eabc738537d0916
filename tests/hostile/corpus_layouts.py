"""Damaged and hostile directories of a runtime layout: its record, what it keeps for the way back, its ranks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpus import CONFIG, HUGE, INDEX, Damage, Hostile, edit_header, edit_json, shard_of

from w4afp8.layouts import _record

RANK = "rank-1-of-2"
STACK = "model.layers.1.mlp.experts.w2"
RECORD, KEPT = _record.RECORD, _record.KEPT
KEPT_CONFIG = f"{_record.FILES}/{CONFIG}"


def rewritten(**changes: Callable[[_record.Record], Any]) -> Damage:
    """A record that says something else, its checksum fitting."""

    def damage(folder: Path) -> None:
        record = _record.read(folder)
        changed = replace(record, **{name: change(record) for name, change in changes.items()})
        (folder / RECORD).write_bytes(changed.render())

    return damage


def on(name: str, content: Callable[[bytes], bytes]) -> Damage:
    """Another content of a file; `header`: of the first canonical header that is kept."""

    def damage(folder: Path) -> None:
        path = folder / name if name != "header" else sorted((folder / _record.HEADERS).iterdir())[0]
        path.write_bytes(content(path.read_bytes()))

    return damage


def signed(damage: Damage) -> Damage:
    """The same, and digests in the record that fit what is kept now: nothing but its meaning can tell."""

    def both(folder: Path) -> None:
        damage(folder)
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _record.read(folder).copies}

        def shards(record: _record.Record) -> dict[str, Any]:
            return {n: s | {"header": found[f"{_record.HEADERS}/{n}.header"]} for n, s in record.shards.items()}

        def files(record: _record.Record) -> dict[str, Any]:
            return {
                n: s | {"sha256": found[f"{_record.FILES}/{n}" if s["kept"] else n]} for n, s in record.files.items()
            }

        rewritten(shards=shards, files=files)(folder)

    return both


def first_entry(**changes: Any) -> Callable[[bytes], bytes]:
    """Lies in the first entry of a header."""

    def content(raw: bytes) -> bytes:
        header = json.loads(raw[8:])
        header[next(name for name in header if name != "__metadata__")].update(changes)
        body = json.dumps(header).encode()
        return struct.pack("<Q", len(body)) + body

    return content


def of_rank(**changes: Any) -> Damage:
    """Lies about one stack of one rank."""
    return lambda folder: edit_header(folder / RANK, lambda header: header[STACK].update(changes), tensor=STACK)


def shard_of_rank(make: Callable[[Path, Path], object]) -> Damage:
    """Something else where a rank's shard was; `make` gets its path and that of the bytes outside the directory."""
    return lambda folder: moved(shard_of(folder / RANK, STACK), make)


def instead(name: str, make: Callable[[Path, Path], object]) -> Damage:
    return lambda folder: moved(folder / name, make)


def moved(path: Path, make: Callable[[Path, Path], object]) -> None:
    """The test's folder is .../home/in: what leaves it lies beside home."""
    home = next(parent for parent in path.parents if parent.name == "home")
    outside = home.parent / "outside"
    outside.mkdir()
    shutil.move(path, outside / path.name)
    make(path, outside / path.name)


def pipe(path: Path, real: Path) -> None:
    os.mkfifo(path)


def link(path: Path, real: Path) -> None:
    path.symlink_to(real)


CORPUS: tuple[Hostile, ...] = (
    Hostile("record empty", on(RECORD, lambda raw: b"")),
    Hostile("record no UTF-8", on(RECORD, lambda raw: raw.replace(b"sm90", b"\xff\xfe90"))),
    Hostile("record a list", on(RECORD, lambda raw: b"[]")),
    Hostile("record nested deeply", on(RECORD, lambda raw: b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    Hostile("record names a field twice", on(RECORD, lambda raw: raw.replace(b"{", b'{"tp": 1, ', 1))),
    Hostile("record of another checksum", on(RECORD, lambda raw: raw.replace(b'"ep": 2', b'"ep": 1'))),
    Hostile("record without a checksum", lambda folder: edit_json(folder / RECORD, lambda r: r.pop("checksum"))),
    Hostile("record a pipe", instead(RECORD, pipe)),
    Hostile("record a folder", instead(RECORD, lambda path, real: path.mkdir())),
    Hostile("ranks of 2^63", rewritten(tp=lambda r: HUGE, ep=lambda r: HUGE)),
    Hostile("sizes of 2^63", rewritten(sizes=lambda r: r.sizes | {"hidden": HUGE, "experts": HUGE})),
    Hostile("padding of 2^63", rewritten(pad=lambda r: HUGE)),
    Hostile("version of another program", rewritten(version=lambda r: 99)),
    Hostile("a tolerance that is not held", rewritten(tolerance=lambda r: 0.5)),
    Hostile("shards of 2^63 bytes", rewritten(shards=lambda r: {n: s | {"bytes": HUGE} for n, s in r.shards.items()})),
    Hostile("shards that leave", rewritten(shards=lambda r: {f"../{n}": s for n, s in r.shards.items()})),
    Hostile("files that leave", rewritten(files=lambda r: {f"../{n}": s for n, s in r.files.items()})),
    Hostile("files no objects", rewritten(files=lambda r: dict.fromkeys(r.files, 1))),
    Hostile("a digest too few", rewritten(tensors=lambda r: dict([*r.tensors.items()][1:]))),
    Hostile("kept header gone", lambda folder: shutil.rmtree(folder / _record.HEADERS)),
    Hostile("kept header cut", signed(on("header", lambda raw: raw[:-9]))),
    Hostile("kept header of 2^63 bytes", signed(on("header", lambda raw: struct.pack("<Q", HUGE) + raw[8:]))),
    Hostile("kept header no JSON", signed(on("header", lambda raw: raw[:8] + b"x" * (len(raw) - 8)))),
    Hostile("kept shape of 2^63", signed(on("header", first_entry(shape=[HUGE])))),
    Hostile("kept offsets of 2^63", signed(on("header", first_entry(data_offsets=[HUGE, HUGE + 2])))),
    Hostile("kept dtype unknown", signed(on("header", first_entry(dtype="F7")))),
    Hostile("kept headers a link out", instead(_record.HEADERS, link)),
    Hostile("kept config gone", lambda folder: (folder / KEPT_CONFIG).unlink()),
    Hostile("kept config a list", signed(on(KEPT_CONFIG, lambda raw: b"[]"))),
    Hostile("kept config of another model", signed(on(KEPT_CONFIG, lambda raw: b'{"model_type": "other"}'))),
    Hostile("kept config a pipe", instead(KEPT_CONFIG, pipe)),
    Hostile("kept config a link out", instead(KEPT_CONFIG, link)),
    Hostile("kept tensors truncated", on(KEPT, lambda raw: raw[:-3])),
    Hostile("kept tensors a pipe", instead(KEPT, pipe)),
    Hostile("kept tensors a link out", instead(KEPT, link)),
    Hostile("carried file of other bytes", on("tokenizer.json", lambda raw: raw + b" ")),
    Hostile("carried file a pipe", instead("tokenizer.json", pipe)),
    Hostile("carried file a link out", instead("tokenizer.json", link)),
    Hostile("rank gone", lambda folder: shutil.rmtree(folder / RANK)),
    Hostile("rank a link out", instead(RANK, link)),
    Hostile("rank's index leaves", lambda folder: edit_json(
        folder / RANK / INDEX, lambda index: index["weight_map"].update({STACK: "../config.json"}))),
    Hostile("rank's config a pipe", instead(f"{RANK}/{CONFIG}", pipe)),
    Hostile("rank's shard truncated", lambda folder: (p := shard_of(folder / RANK, STACK)).write_bytes(
        p.read_bytes()[:-100])),
    Hostile("rank's shard a link out", shard_of_rank(link)),
    Hostile("rank's shard a pipe", shard_of_rank(pipe)),
    Hostile("rank's stack of 2^63", of_rank(shape=[HUGE])),
    Hostile("rank's stack at 2^63", of_rank(data_offsets=[HUGE, HUGE + 2])),
    Hostile("rank's stack of another dtype", of_rank(dtype="F64")),
    Hostile("rank's stack of another name", lambda folder: edit_header(
        folder / RANK, lambda header: header.update({"odd": header.pop(STACK)}), tensor=STACK)),
)  # fmt: skip
