"""CheckpointReader: every tensor known from headers first, data only when asked for."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from w4afp8.checkpoint.header import read_header, refuse_twins
from w4afp8.checkpoint.memory import empty
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import CheckpointError, W4AFP8Error, raise_all

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"


class CheckpointReader:
    """A checkpoint directory: `specs` by name, `config`, and `read`.

    Plain reads, no memory map: a mapped page counts as resident, and this program promises its peak memory.
    Raises: CheckpointError listing every missing shard, lying header, dangling or unlisted tensor at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such directory; give a checkpoint directory or a Hub id (org/name)")
        self.config: dict[str, Any] = read_json(folder / CONFIG)
        weight_map = self._weight_map()
        self.shards: tuple[str, ...] = tuple(sorted(set(weight_map.values())))
        self.specs: dict[str, TensorSpec] = self._specs(weight_map)
        self._files: dict[str, int] = {}
        self._opening = threading.Lock()
        weakref.finalize(self, close_all, self._files)  # who forgets to close leaves nothing open

    def _weight_map(self) -> dict[str, str]:
        index, single = self.folder / INDEX, self.folder / SINGLE
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                raise CheckpointError(f"{INDEX}: expected a 'weight_map' object of tensor name to file name")
            return weight_map
        if single.exists():
            return {spec.name: SINGLE for spec in read_header(single)[0]}
        raise CheckpointError(
            f"{self.folder}: found neither {INDEX} nor {SINGLE}; without one of them the directory is no finished "
            "checkpoint"
        )

    def _specs(self, weight_map: dict[str, str]) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        problems: list[str] = []
        for shard in self.shards:
            try:
                specs = read_header(self._locate(shard))[0]
            except W4AFP8Error as error:
                problems.append(str(error))
                continue
            here = {spec.name for spec in specs}
            for name in sorted(name for name, where in weight_map.items() if where == shard and name not in here):
                problems.append(f"{name}: {INDEX} places it in {shard}, which does not hold it")
            for spec in specs:
                listed = weight_map.get(spec.name)
                if listed is None:
                    problems.append(f"{spec.name}: {shard} holds it, {INDEX} does not list it")
                elif listed == shard:
                    found[spec.name] = spec
                else:
                    problems.append(f"{spec.name}: {shard} holds it, {INDEX} places it in {listed}")
        raise_all(problems, CheckpointError, f"{self.folder} is not a sound checkpoint")
        return found

    def _locate(self, shard: str) -> Path:
        """The shard's path, refused when its name leaves the directory (a Hub cache's link to its blobs may)."""
        path = self.folder / shard
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{INDEX} names the shard {shard!r}; expected a plain file name beside the index")
        try:
            there = path.exists()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            raise CheckpointError(f"{shard}: listed in {INDEX} but not in {self.folder}; fetch it again")
        refuse_link_out(self.folder, path)
        return path

    def shard_path(self, shard: str) -> Path:
        return self.folder / shard

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The whole tensor, or one `part` along its first axis: of stacked experts, one.

        Raises: CheckpointError when there is no such tensor or part, or its bytes end early.
        """
        spec = self.specs.get(name)
        if spec is None:
            raise CheckpointError(f"{name}: not in {self.folder}")
        spec = spec if part is None else spec.part(part)
        raw = empty((spec.span_bytes,))
        self._fill(spec, raw, 0)
        return raw.view(DTYPES[spec.dtype]).view(spec.shape)

    def read_across(self, name: str, index: int) -> Tensor:
        """Element `index` of the second axis, [A, B, ...] -> [A, ...], read in A pieces."""
        spec = self.specs[name]
        outer_bytes, run_bytes = (s.span_bytes for s in (spec.part(0), spec.part(0).part(index)))
        raw = empty((spec.shape[0], run_bytes))
        for outer, run in enumerate(raw.unbind()):
            self._fill(spec, run, outer * outer_bytes + index * run_bytes)
        return raw.view(-1).view(DTYPES[spec.dtype]).view(spec.shape[0], *spec.shape[2:])

    def read_bytes(self, name: str, chunk_bytes: int = 16 << 20) -> Iterator[Tensor]:
        """The tensor's bytes in pieces: uint8 [at most chunk_bytes] each, for copies that must stay small."""
        spec = self.specs[name]
        for begin in range(0, spec.span_bytes, chunk_bytes):
            raw = empty((min(chunk_bytes, spec.span_bytes - begin),))
            self._fill(spec, raw, begin)
            yield raw

    def _fill(self, spec: TensorSpec, raw: Tensor, skip_bytes: int) -> None:
        with self._opening:
            if spec.shard not in self._files:
                self._files[spec.shard] = os.open(self.shard_path(spec.shard), os.O_RDONLY)
        buffer = raw.numpy().data
        done = 0
        while done < len(buffer):
            got = os.preadv(self._files[spec.shard], [buffer[done:]], spec.begin + skip_bytes + done)
            if got == 0:
                raise CheckpointError(f"{spec}: the file ends early; it changed while it was being read")
            done += got

    def close(self) -> None:
        close_all(self._files)

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def close_all(files: dict[str, int]) -> None:
    """Closes these descriptors, and forgets them."""
    for descriptor in files.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    files.clear()


def read_tensor(path: Path, spec: TensorSpec) -> Tensor:
    """One tensor of a file that no index lists; `spec` is its header's.  Raises: CheckpointError for a cut file."""
    with path.open("rb") as file:
        file.seek(spec.begin)
        raw = bytearray(file.read(spec.span_bytes))
    if len(raw) < spec.span_bytes:
        raise CheckpointError(f"{spec}: the file ends early; fetch it again")
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return flat.view(DTYPES[spec.dtype]).view(spec.shape)


def refuse_link_out(folder: Path, path: Path) -> None:
    """Raises: CheckpointError when a file of a checkpoint is a link to somewhere else on this machine."""
    target, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"  # the Hub cache: models--org--name/{blobs,snapshots/REVISION}
    if not target.is_relative_to(home) and not (home.parent.name == "snapshots" and target.parent == blobs):
        name = path.relative_to(folder).as_posix()
        raise CheckpointError(f"{name} is a link out of the checkpoint, to {target}; copy the file instead")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises: CheckpointError when it is missing, no file, no JSON, no object, or names something twice.
    """
    if path.exists() and not path.is_file():  # a folder, a pipe that would never answer
        raise CheckpointError(f"{path.name}: no file in {path.parent}; fetch it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=partial(refuse_twins, path.name))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name}: not found in {path.parent}") from error
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: not valid JSON ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: holds a JSON {type(content).__name__}, expected an object")
    return content
