"""A safetensors header, distrusted: eight bytes of length, JSON, then the data.

Agrees with: safetensors 0.8.0's own checks (`tensor.rs: validate`), which raise one error at a time; ours name the
tensor and list every problem of a file at once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import CheckpointError, raise_all

LARGEST_HEADER_BYTES = 100_000_000  # the limit that safetensors itself sets
MOST_DIMENSIONS = 64  # torch's own limit; the product of a million of them would never be computed
METADATA = "__metadata__"


def read_header(path: Path, size_bytes: int | None = None) -> tuple[list[TensorSpec], dict[str, str]]:
    """Every tensor of one file in the order of its data, and the file's metadata; no data byte is read.

    `size_bytes` is the whole file's where `path` holds nothing but its header.

    Raises: CheckpointError for a truncated file, a header that is no JSON object or names a tensor twice, unknown
    dtypes, shapes and offsets that disagree, overlaps, holes, and bytes after the last tensor.
    """
    if not path.is_file():  # a directory, a pipe that would never answer
        raise CheckpointError(f"{path.name}: not a file in {path.parent}; fetch it again")
    size_bytes = path.stat().st_size if size_bytes is None else size_bytes
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if length < 2 or length > LARGEST_HEADER_BYTES or 8 + length > size_bytes:
            raise CheckpointError(
                f"{path.name}: {size_bytes} bytes, and the first eight announce a header of {length}; "
                "the file is truncated or is not safetensors, fetch it again"
            )
        raw = file.read(length)
        if len(raw) < length:
            raise CheckpointError(f"{path.name}: {len(raw)} bytes of a header of {length}; fetch it again")
    entries = _parse(raw, path.name)
    metadata = entries.pop(METADATA, {})
    problems: list[str] = []
    specs: list[TensorSpec] = []
    for name, entry in entries.items():
        problem, spec = _check_entry(name, entry, path.name, 8 + length)
        problems += problem
        specs += spec
    specs.sort(key=lambda spec: (spec.begin, spec.span_bytes))
    if not problems:
        problems = list(_check_cover(specs, path.name, 8 + length, size_bytes))
    raise_all(problems, CheckpointError, f"{path.name}: the header lies")
    return specs, metadata if isinstance(metadata, dict) else {}


def _parse(raw: bytes, file_name: str) -> dict[str, Any]:
    try:
        entries = json.loads(raw, object_pairs_hook=partial(refuse_twins, f"{file_name}: the header"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file_name}: the header is not JSON ({error}); fetch the file again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file_name}: the header is a JSON {type(entries).__name__}, expected an object")
    return entries


def refuse_twins(what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object for `json.loads`.  Raises: CheckpointError when a key stands in it twice: parsers take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"{what} names {again!r} twice")
    return found


def _check_entry(name: str, entry: Any, file_name: str, data_begin: int) -> tuple[list[str], list[TensorSpec]]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return [f"{name}: expected an object with dtype, shape and data_offsets, found {str(entry)[:80]}"], []
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return [f"{name}: unknown dtype {str(dtype)[:80]!r}; known: {', '.join(DTYPES)}"], []
    if not _all_counts(shape) or not _all_counts(offsets) or len(offsets) != 2:
        return [f"{name}: shape {shape} and offsets {offsets} must be lists of non-negative whole numbers"[:300]], []
    if len(shape) > MOST_DIMENSIONS:
        return [f"{name}: {len(shape)} dimensions, expected at most {MOST_DIMENSIONS}"], []
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        return [f"{name}: {dtype} {shape} takes {expected} bytes, its offsets {begin}..{end} hold {end - begin}"], []
    return [], [TensorSpec(name, dtype, tuple(shape), file_name, data_begin + begin)]


def _all_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_cover(specs: list[TensorSpec], file_name: str, data_begin: int, size_bytes: int) -> Iterable[str]:
    position = data_begin
    for spec in specs:
        if spec.begin != position:
            kind = "overlaps the tensor before it" if spec.begin < position else "leaves a hole before it"
            yield f"{spec.name}: begins at byte {spec.begin}, expected {position}; it {kind}"
        position = spec.begin + spec.span_bytes
    if position > size_bytes:
        yield f"{file_name} has {size_bytes} bytes, its tensors need {position}; it is truncated, fetch it again"
    if position < size_bytes:
        yield f"{file_name} has {size_bytes - position} bytes after its last tensor"


def render_header(specs: Iterable[TensorSpec], metadata: dict[str, str]) -> tuple[bytes, list[TensorSpec]]:
    """The header of a file that holds `specs` in the given order, and the specs with their `begin` filled in.

    Padded with spaces to a multiple of 8 bytes, as the format asks.
    """
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    position, placed = 0, []
    for spec in specs:
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.span_bytes],
        }
        placed.append((spec, position))
        position += spec.span_bytes
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    header = struct.pack("<Q", len(body)) + body
    return header, [
        TensorSpec(spec.name, spec.dtype, spec.shape, spec.shard, len(header) + position) for spec, position in placed
    ]
