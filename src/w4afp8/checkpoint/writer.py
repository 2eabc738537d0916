"""ShardWriter: one safetensors file whose layout is known before its first byte, filled in any order."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from w4afp8.checkpoint.atomic import PARTIAL, commit
from w4afp8.checkpoint.header import render_header
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import NAMES, TensorSpec
from w4afp8.errors import CheckpointError

METADATA = {"format": "pt"}  # transformers-style loaders look for it
# A run of bytes this long is handed to the disk as soon as it is written, and leaves the page cache so many runs later:
# the end of a large file does not wait for all of it, pages are used again instead of new ones being found, and what
# other programs keep in memory stays there.
RELEASED_BYTES = 1 << 20
UNDER_WAY = 16


class Released:
    """Writes to an open file, long runs of which leave the page cache behind it."""

    def __init__(self, descriptor: int) -> None:
        self._file = descriptor
        self._under_way: deque[tuple[int, int]] = deque()

    def write(self, data: memoryview, position: int) -> None:
        """All of `data` at a place of the file."""
        write_all(self._file, data, position)
        if len(data) >= RELEASED_BYTES and hasattr(os, "posix_fadvise"):
            self._release(position, len(data))
            self._under_way.append((position, len(data)))
            if len(self._under_way) > UNDER_WAY:
                self._release(*self._under_way.popleft())

    def _release(self, position: int, length: int) -> None:
        """Start writing a run that is in memory alone; forget one that is on the disk."""
        os.posix_fadvise(self._file, position, length, os.POSIX_FADV_DONTNEED)


class _Nothing:
    """The digest that nobody asked for."""

    def __init__(self, data: memoryview | None = None) -> None:
        pass

    def update(self, data: memoryview) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


class ShardWriter:
    """Writes `path` through `path.partial`; memory is one tensor, not one shard.

    Tensors may come in any order, the parts of one (`put_part`) as they stand in it.  `finish` refuses until every
    planned tensor is written.  Several threads may put different tensors.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None, digest: bool = True
    ) -> None:
        """`digest`: whether `digests` are taken, of whatever is written in order; they take longer than writing."""
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        # Widest elements first keeps every tensor aligned to its own size, as safetensors' own writer does.
        ordered = sorted(specs, key=lambda spec: (-spec.item_bytes, spec.name))
        header, placed = render_header(ordered, METADATA | dict(metadata or {}))
        self._waiting = {spec.name: spec for spec in placed}
        self._digest = hashlib.sha256 if digest else _Nothing
        # Stacks: parts written, their digest.
        self._begun: dict[str, tuple[TensorSpec, int, hashlib._Hash | _Nothing]] = {}
        self._across: dict[str, tuple[TensorSpec, int]] = {}
        self.digests: dict[str, str] = {}
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._released = Released(self._file)
        write_all(self._file, memoryview(header), 0)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.  Raises: CheckpointError when its dtype or shape is not the planned one."""
        spec = self._take(name)
        data = _bytes_of(tensor, spec)
        self._released.write(data, spec.begin)
        self._end(name, self._digest(data))

    def put_part(self, name: str, index: int, tensor: Tensor) -> None:
        """Write element `index` of a tensor's first axis; memory is that element, the digest that of the whole.

        Raises: CheckpointError when its dtype or shape is not the planned one, or the part before it is not written.
        """
        if name not in self._begun:
            self._begun[name] = (self._take(name), 0, self._digest())
        spec, done, digest = self._begun[name]
        if index != done:
            raise CheckpointError(f"{spec}: part {index} came, expected part {done}")
        data = _bytes_of(tensor, spec.part(index))
        self._released.write(data, spec.part(index).begin)
        digest.update(data)
        if done + 1 < spec.shape[0]:
            self._begun[name] = (spec, done + 1, digest)
        else:
            del self._begun[name]
            self._end(name, digest)

    def put_across(self, name: str, index: int, tensor: Tensor) -> None:
        """Write element `index` of a tensor's second axis, in as many places as its first axis is long.

        Such a tensor has no digest here: its bytes do not come in order.
        Raises: CheckpointError when its dtype or shape is not the planned one, or the part before it is not written.
        """
        spec, done = self._across.pop(name) if name in self._across else (self._take(name), 0)
        if index != done:
            raise CheckpointError(f"{spec}: part {index} came, expected part {done}")
        outer_bytes, run_bytes = (s.span_bytes for s in (spec.part(0), spec.part(0).part(index)))
        data = _bytes_of(tensor, TensorSpec(name, spec.dtype, (spec.shape[0], *spec.shape[2:])))
        for outer in range(spec.shape[0]):
            run = data[outer * run_bytes : (outer + 1) * run_bytes]
            self._released.write(run, spec.begin + outer * outer_bytes + index * run_bytes)
        if done + 1 < spec.shape[1]:
            self._across[name] = (spec, done + 1)

    def copy(self, name: str, reader: CheckpointReader, source_name: str) -> None:
        """Copy a tensor's bytes unread from another checkpoint."""
        spec = self._take(name)
        source = reader.specs[source_name]
        if (source.dtype, source.shape) != (spec.dtype, spec.shape):
            raise CheckpointError(f"{source}: planned as {spec.dtype} {list(spec.shape)}")
        digest, position = self._digest(), spec.begin
        for piece in reader.read_bytes(source_name):
            data = piece.numpy().data
            digest.update(data)
            self._released.write(data, position)
            position += len(data)
        self._end(name, digest)

    def _end(self, name: str, digest: hashlib._Hash | _Nothing) -> None:
        found = digest.hexdigest()
        if found:
            self.digests[name] = found

    def _take(self, name: str) -> TensorSpec:
        spec = self._waiting.pop(name, None)
        if spec is None:
            raise CheckpointError(f"{name}: not planned for {self.path.name}, or written twice")
        return spec

    def finish(self) -> None:
        """Make the file durable and give it its name."""
        missing = sorted([*self._waiting, *self._begun, *self._across])
        if missing:
            raise CheckpointError(f"{self.path.name}: never written: {', '.join(missing[:5])}")
        os.fsync(self._file)
        self.abandon()
        commit(self._partial, self.path)

    def abandon(self) -> None:
        """Close without publishing; the partial file is overwritten by the next attempt."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()


def _bytes_of(tensor: Tensor, spec: TensorSpec) -> memoryview:
    if NAMES.get(tensor.dtype) != spec.dtype or tuple(tensor.shape) != spec.shape:
        raise CheckpointError(f"{spec}: planned so, but got {tensor.dtype} {list(tensor.shape)}")
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """All of `data` at a place of an open file."""
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written
