"""Damaged and hostile checkpoints: each a function that spoils a sound one.  Every row is tried with every command.

`seen_by` says who must refuse: "headers" every command, "values" those that read numbers, "files" those that copy
files, "scales" those that read the activation scales.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX, CONFIG = "model.safetensors.index.json", "config.json"
NORM = "model.norm.weight"  # BF16, in the first shard of both checkpoints
ROUTER = "model.layers.1.mlp.gate.weight"
Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    name: str
    damage: Damage
    seen_by: str = "headers"


def shard_of(folder: Path, tensor: str = NORM) -> Path:
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return folder / weight_map[tensor]


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_header(
    folder: Path,
    change: Callable[[dict[str, Any]], object],
    data: Callable[[bytes], bytes] = bytes,
    tensor: str = NORM,
) -> None:
    """Rewrite the header of the shard of a tensor, the first one's as a rule, and the data behind it."""
    raw = shard_of(folder, tensor).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    write_header(folder, json.dumps(header).encode(), data(raw[8 + length :]), tensor=tensor)


def write_header(
    folder: Path, header: bytes, data: bytes | None = None, announced: int | None = None, tensor: str = NORM
) -> None:
    path = shard_of(folder, tensor)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    kept = raw[8 + length :] if data is None else data
    path.write_bytes(struct.pack("<Q", len(header) if announced is None else announced) + header + kept)


def entry(**changes: Any) -> Damage:
    """Lies in one tensor's entry."""
    return lambda folder: edit_header(folder, lambda header: header[NORM].update(changes))


def header(content: bytes, announced: int | None = None) -> Damage:
    return lambda folder: write_header(folder, content, announced=announced)


def placed(shard: object, tensor: str = NORM) -> Damage:
    """The index places a tensor somewhere."""
    return lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].update({tensor: shard}))


def index(content: bytes) -> Damage:
    return lambda folder: (folder / INDEX).write_bytes(content)


def config(content: bytes) -> Damage:
    return lambda folder: (folder / CONFIG).write_bytes(content)


def field(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / CONFIG, lambda config: config.update(changes))


def shard(content: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = shard_of(folder)
        path.write_bytes(content(path.read_bytes()))

    return damage


def instead(name: str, make: Callable[[Path, Path], object]) -> Damage:
    """Something else where a file was; `make` gets its path and a folder outside the checkpoint."""

    def damage(folder: Path) -> None:
        path = shard_of(folder) if name == "shard" else folder / name
        outside = folder.parent / f"{folder.name}-outside"
        outside.mkdir()
        path.rename(outside / path.name)
        make(path, outside / path.name)

    return damage


def twice(folder: Path) -> None:
    """The first shard's first tensor again under the same name."""
    raw = shard_of(folder).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    body = raw[8 : 8 + length].decode().rstrip()
    again = json.loads(body)[NORM]
    write_header(folder, f"{body[:-1]},{json.dumps(NORM)}:{json.dumps(again)}}}".encode())


def overlap(folder: Path) -> None:
    """The last tensor in the bytes of the one before it."""

    def change(header: dict[str, Any]) -> None:
        *_, last = sorted((e for name, e in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
        begin, end = last["data_offsets"]
        last["data_offsets"] = [begin - 2, end - 2]

    edit_header(folder, change)


def names_twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(
        text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "elsewhere.safetensors",', 1)
    )


def drop(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(NORM))


def rename_tensor(folder: Path) -> None:
    edit_header(folder, lambda header: header.update({"model.odd.weight": header.pop(NORM)}))
    edit_json(folder / INDEX, lambda i: i["weight_map"].update({"model.odd.weight": i["weight_map"].pop(NORM)}))


def spoil(tensor_end: str | tuple[str, ...], pattern: bytes) -> Damage:
    """The first number of the first tensor whose name ends so."""

    def damage(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        name = next(n for n in sorted(weight_map) if n.endswith(tensor_end))
        path = folder / weight_map[name]
        raw = bytearray(path.read_bytes())
        (length,) = struct.unpack("<Q", raw[:8])
        begin = 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]
        raw[begin : begin + len(pattern)] = pattern
        path.write_bytes(raw)

    return damage


NAN32, INF32 = struct.pack("<I", 0x7FC00000), struct.pack("<I", 0x7F800000)
HUGE = 2**63

CORPUS: tuple[Hostile, ...] = (
    Hostile("shard truncated", shard(lambda raw: raw[:-100])),
    Hostile("shard cut within the header", shard(lambda raw: raw[:100])),
    Hostile("shard empty", shard(lambda raw: b"")),
    Hostile("shard of seven bytes", shard(lambda raw: raw[:7])),
    Hostile("bytes after the last tensor", shard(lambda raw: raw + b"x")),
    Hostile("header beyond the file", header(b"{}", 2**40)),
    Hostile("header of 2^63 bytes", header(b"{}", HUGE)),
    Hostile("header of 2^64-1 bytes", header(b"{}", 2**64 - 1)),
    Hostile("header of no bytes", header(b"")),
    Hostile("header no JSON", header(b"{'a': 1}")),
    Hostile("header no UTF-8", header(b'{"\xff\xfe": 1}')),
    Hostile("header a list", header(b"[1]")),
    Hostile("header nested deeply", header(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")),
    Hostile("header of numbers", header(b'{"a": 1}')),
    Hostile(
        "header with a number of a million digits", header(b'{"a": {"dtype":"U8","shape":[' + b"9" * 10**6 + b"]}}")
    ),
    Hostile("tensor named twice", twice),
    Hostile("tensors overlap", overlap),
    Hostile("offsets beyond the file", entry(data_offsets=[10**12, 10**12 + 256])),
    Hostile("offsets of 2^63", entry(data_offsets=[HUGE, HUGE + 256])),
    Hostile("offsets backwards", entry(data_offsets=[256, 0])),
    Hostile("offsets negative", entry(data_offsets=[-256, 0])),
    Hostile("offsets of three", entry(data_offsets=[0, 1, 2])),
    Hostile("offsets of text", entry(data_offsets="ab")),
    Hostile("shape of 2^63", entry(shape=[HUGE])),
    Hostile("shape that overflows", entry(shape=[2**31, 2**31, 2**31])),
    Hostile("shape negative", entry(shape=[-128])),
    Hostile("shape of fractions", entry(shape=[128.0])),
    Hostile("shape of a thousand axes", entry(shape=[1] * 1000)),
    Hostile("dtype unknown", entry(dtype="F7")),
    Hostile("dtype no text", entry(dtype=[])),
    Hostile("dtype of another width", entry(dtype="F64")),
    Hostile("dtype wrong, of the same width", entry(dtype="I16")),
    Hostile("entry no object", lambda folder: edit_header(folder, lambda header: header.update({NORM: None}))),
    Hostile("tensor missing", drop),
    Hostile("tensor of another name", rename_tensor),
    Hostile("index empty", index(b"")),
    Hostile("index no UTF-8", index(b'{"weight_map": {"\xff": 1}}')),
    Hostile("index a list", index(b"[]")),
    Hostile("index without a map", index(b"{}")),
    Hostile("index maps to numbers", placed(1)),
    Hostile("index names a tensor twice", names_twice),
    Hostile("index points to no file", placed("model-99999.safetensors")),
    Hostile("index points to another file", placed("config.json")),
    Hostile("index lists a ghost", placed("model-00001-of-00002.safetensors", "ghost.weight")),
    Hostile("index leaves the folder", placed("../outside.safetensors")),
    Hostile("index goes to the root", placed("/etc/passwd")),
    Hostile("index goes below", placed("deeper/model.safetensors")),
    Hostile("index names the folder", placed("..")),
    Hostile("index names nothing", placed("")),
    Hostile("index names a zero byte", placed("a\0b")),
    Hostile("index names half a character", placed("\ud800")),
    Hostile("index names a file of 5000 letters", placed("x" * 5000)),
    Hostile("shard a link out", instead("shard", lambda path, real: path.symlink_to(real))),
    Hostile("shard a link to the root", instead("shard", lambda path, real: path.symlink_to("/etc/passwd"))),
    Hostile("shard a link to itself", instead("shard", lambda path, real: path.symlink_to(path.name))),
    Hostile("shard a folder", instead("shard", lambda path, real: path.mkdir())),
    Hostile("shard a pipe", instead("shard", lambda path, real: os.mkfifo(path))),
    Hostile("config gone", lambda folder: (folder / CONFIG).unlink()),
    Hostile("config empty", config(b"")),
    Hostile("config no UTF-8", config(b'{"model_type": "\xff"}')),
    Hostile("config a list", config(b"[]")),
    Hostile("config nested deeply", config(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    Hostile("config a pipe", instead(CONFIG, lambda path, real: os.mkfifo(path))),
    Hostile("config a folder", instead(CONFIG, lambda path, real: path.mkdir())),
    Hostile("index a pipe", instead(INDEX, lambda path, real: os.mkfifo(path))),
    Hostile("model type no text", field(model_type=["deepseek_v3"])),
    Hostile("model type unknown", field(model_type="other")),
    Hostile("more layers than any memory", field(num_hidden_layers=10**12)),
    Hostile("experts of 2^63", field(n_routed_experts=HUGE)),
    Hostile("layers of text", field(num_hidden_layers="3")),
    Hostile("layers negative", field(num_hidden_layers=-1)),
    Hostile("hidden size infinite", field(hidden_size=float("inf"))),
    Hostile("hidden size of another model", field(hidden_size=256)),
    Hostile("norm not a number", spoil("model.norm.weight", b"\xff\xff"), "values"),
    Hostile(
        "scale not a number", spoil((".0.down_proj.weight_scale_inv", ".0.down_proj.weight_scale"), NAN32), "values"
    ),
    Hostile("scale infinite", spoil((".0.gate_proj.weight_scale_inv", ".0.gate_proj.weight_scale"), INF32), "values"),
    Hostile("tokenizer a link out", instead("tokenizer.json", lambda path, real: path.symlink_to(real)), "files"),
    Hostile("activation scale a list", lambda folder: edit_scales(folder, [2]), "scales"),
    Hostile("activation scales gone", lambda folder: (folder / "act_scales.safetensors").unlink(), "scales"),
)


def edit_scales(folder: Path, shape: list[int]) -> None:
    """One activation scale of two numbers, the file whole again."""
    path = folder / "act_scales.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    last = max((n for n in entries if n != "__metadata__"), key=lambda n: entries[n]["data_offsets"][1])
    entries[last]["shape"] = shape
    entries[last]["data_offsets"][1] += 4
    body = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + raw[8 + length :] + b"\0" * 4)


def mutations(raw: bytes, chance: Any, count: int) -> Iterator[bytes]:
    """`raw` with something random done to it: bytes changed, cut out, doubled, or replaced by what parsers trip on."""
    nasty = (
        b"\0",
        b"\xff",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"-1",
        b"1e999",
        b"9" * 40,
        b"null",
        b"NaN",
        b"\\ud800",
    )
    for _ in range(count):
        at = chance.randrange(len(raw))
        size = chance.choice((1, 1, 2, 8, 64))
        kind = chance.randrange(4)
        if kind == 0:
            yield raw[:at] + bytes([raw[at] ^ chance.randrange(1, 256)]) + raw[at + 1 :]
        elif kind == 1:
            yield raw[:at] + raw[at + size :]
        elif kind == 2:
            yield raw[:at] + raw[at : at + size] + raw[at:]
        else:
            yield raw[:at] + chance.choice(nasty) + raw[at + size :]
