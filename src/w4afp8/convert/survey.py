"""Every byte of the source read once before the first is written: is it sound, and which bytes are they?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import QuantizationError, raise_all

# An element is NaN or infinite when these bits of it are all set (e4m3 has NaN alone, at 0x7F and 0xFF).
NOT_FINITE: dict[str, tuple[torch.dtype, int]] = {
    "F8_E4M3": (torch.uint8, 0x7F),
    "F8_E5M2": (torch.uint8, 0x7C),
    "F8_E8M0": (torch.uint8, 0xFF),
    "BF16": (torch.int16, 0x7F80),
    "F16": (torch.int16, 0x7C00),
    "F32": (torch.int32, 0x7F800000),
}

Identity = dict[str, dict[str, Any]]  # shard -> {"bytes", "mtime_ns", "sha256"}


def survey_values(
    reader: CheckpointReader, known: Mapping[str, Mapping[str, Any]], progress: Callable[[int], None], workers: int = 2
) -> Identity:
    """The SHA-256 of every shard, all of whose numbers are finite.

    A shard whose size and time are those in `known` keeps the digest found there and is not read again.
    `progress` is told the bytes of every piece read.
    Raises: QuantizationError naming every tensor that holds NaN or infinity.
    """
    by_shard: dict[str, list[TensorSpec]] = {shard: [] for shard in reader.shards}
    for spec in reader.specs.values():
        by_shard[spec.shard].append(spec)

    def look(shard: str) -> tuple[dict[str, Any], list[str]]:
        stat = reader.shard_path(shard).stat()
        identity = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        before = known.get(shard, {})
        if all(before.get(key) == value for key, value in identity.items()) and before.get("sha256"):
            progress(stat.st_size)
            return {**identity, "sha256": before["sha256"]}, []
        digest, problems = _read_shard(reader, shard, by_shard[shard], progress)
        if digest == before.get("sha256"):  # touched, copied or mounted anew: still the same shard
            identity["mtime_ns"] = before["mtime_ns"]
        return {**identity, "sha256": digest}, problems

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(look, reader.shards))
    raise_all(
        [problem for _, problems in found for problem in problems],
        QuantizationError,
        "the source holds numbers that are not finite; fetch these shards again",
    )
    return {shard: identity for shard, (identity, _) in zip(reader.shards, found)}


def _read_shard(
    reader: CheckpointReader, shard: str, specs: list[TensorSpec], progress: Callable[[int], None]
) -> tuple[str, list[str]]:
    """The digest of the whole file (what the Hub calls its oid) and what is wrong inside."""
    ordered = sorted(specs, key=lambda spec: spec.begin)
    digest, problems = hashlib.sha256(), []
    with reader.shard_path(shard).open("rb") as file:
        digest.update(file.read(ordered[0].begin if ordered else -1))
    for spec in ordered:
        position = 0
        for piece in reader.read_bytes(spec.name):
            digest.update(piece.numpy().data)
            bad = first_not_finite(piece, spec.dtype)
            if bad is not None:
                problems.append(f"{spec}: element {position // spec.item_bytes + bad} is NaN or infinite")
                position = -1
            progress(len(piece))
            if position < 0:
                break
            position += len(piece)
    return digest.hexdigest(), problems


def first_not_finite(raw: Tensor, dtype: str) -> int | None:
    """Index of the first NaN or infinity among elements of `dtype` stored as uint8 bytes, or None."""
    if dtype not in NOT_FINITE or raw.numel() == 0:
        return None
    kind, mask = NOT_FINITE[dtype]
    bad = raw.view(kind).bitwise_and(mask) == mask
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def headers_identity(reader: CheckpointReader) -> Identity:
    """Sizes and times alone, for runs that trust the source."""
    found = {}
    for shard in reader.shards:
        stat = reader.shard_path(shard).stat()
        found[shard] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": None}
    return found
