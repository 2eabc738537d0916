"""ShardWriter: what it writes safetensors reads, what was not planned it refuses, nothing half-done has a name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES, NAMES, TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.errors import CheckpointError


def specs_of(tensors: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]


def raw(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__" and n.isprintable()),
                       st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=8), st.randoms())  # fmt: skip
def test_safetensors_reads_what_we_write_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[str, tuple[int, ...]]], random: object
) -> None:
    tensors = {}
    for name, (dtype, shape) in wanted.items():
        spec = TensorSpec(name, dtype, shape)
        content = torch.randint(0, 2 if dtype == "BOOL" else 256, (spec.span_bytes,), dtype=torch.uint8)
        tensors[name] = content.view(DTYPES[dtype]).view(shape)
    path = tmp_path_factory.mktemp("write") / "a.safetensors"
    order = list(tensors)
    random.shuffle(order)  # type: ignore[attr-defined]
    with ShardWriter(path, specs_of(tensors)) as writer:
        for name in order:
            writer.put(name, tensors[name])
        assert writer.digests == {n: hashlib.sha256(bytes(raw(t))).hexdigest() for n, t in tensors.items()}
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape, raw(found[name])) == (tensor.dtype, tensor.shape, raw(tensor))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for spec in read_header(path)[0]:
        assert spec.begin % spec.item_bytes == 0, f"{spec} is not aligned to its own size"


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.ones(2, dtype=torch.int8)}
    for number, order in enumerate(("abc", "cba")):
        with ShardWriter(tmp_path / f"{number}.safetensors", specs_of(tensors)) as writer:
            for name in order:
                writer.put(name, tensors[name])
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_views_are_written_as_their_copies(tmp_path: Path) -> None:
    view = torch.arange(24.0).view(4, 6).T[1:, ::2]
    with ShardWriter(tmp_path / "a.safetensors", specs_of({"a": view})) as writer:
        writer.put("a", view)
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], view)


def test_bytes_are_copied_from_another_checkpoint_unread(tmp_path: Path) -> None:
    """NaN payloads and all."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    save_file({"codes": codes, "other": torch.ones(3)}, source / "model.safetensors")
    with CheckpointReader(source) as reader:
        with ShardWriter(tmp_path / "a.safetensors", [TensorSpec("renamed", "F8_E4M3", (16, 16))]) as writer:
            writer.copy("renamed", reader, "codes")
        assert writer.digests["renamed"] == hashlib.sha256(bytes(range(256))).hexdigest()
        with (
            pytest.raises(CheckpointError, match="other"),
            ShardWriter(tmp_path / "b.safetensors", [TensorSpec("x", "F32", (4,))]) as writer,
        ):
            writer.copy("x", reader, "other")
    assert raw(load_file(tmp_path / "a.safetensors")["renamed"]) == list(range(256))
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("unplanned", torch.ones(2), "unplanned: not planned"),
        ("done", torch.ones(1), "done: .*written twice"),
        ("a", torch.ones(3), r"a .*planned so, but got torch.float32 \[3\]"),
        ("a", torch.ones(2, 1), r"got torch.float32 \[2, 1\]"),
        ("a", torch.ones(2, dtype=torch.float64), "got torch.float64"),
        ("a", torch.ones(2, dtype=torch.int32), "got torch.int32"),
        ("a", torch.ones(2, dtype=torch.complex64), "got torch.complex64"),
    ],
)
def test_what_was_not_planned_is_refused(tmp_path: Path, name: str, tensor: Tensor, says: str) -> None:
    path = tmp_path / "x.safetensors"
    planned = [TensorSpec("a", "F32", (2,)), TensorSpec("done", "F32", (1,))]
    with pytest.raises(CheckpointError, match=says), ShardWriter(path, planned) as writer:
        writer.put("done", torch.ones(1))
        writer.put(name, tensor)
    assert not path.exists()


def test_a_shard_with_a_gap_gets_no_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with (
        pytest.raises(CheckpointError, match=r"x.safetensors: never written: b"),
        ShardWriter(path, [TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (1,))]) as writer,
    ):
        writer.put("a", torch.ones(2))
    assert not path.exists()


def test_the_name_appears_with_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with ShardWriter(path, [TensorSpec("a", "F32", (2,))]) as writer:
        assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors.partial"]
        writer.put("a", torch.ones(2))
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_error_leaves_no_name_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RuntimeError, match="power"), ShardWriter(path, [TensorSpec("a", "F32", (2,))]) as writer:
        writer.put("a", torch.ones(2))
        raise RuntimeError("power")
    assert not path.exists()
    with ShardWriter(path, [TensorSpec("a", "F32", (1,))]) as writer:
        writer.put("a", torch.zeros(1))
    assert load_file(path)["a"].tolist() == [0.0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_are_durable_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the folder: in this order, or a power cut leaves a name without bytes."""
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watch_sync(descriptor: int) -> None:
        order.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def watch_replace(path: Path, target: Path) -> Path:
        order.append(f"rename {path.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watch_sync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    with ShardWriter(tmp_path / "x", [TensorSpec("a", "F32", (2,))]) as writer:
        writer.put("a", torch.ones(2))
    atomic.write_bytes(tmp_path / "y", b"y")
    folder = f"fsync {tmp_path.name}"
    assert order == ["fsync x.partial", "rename x.partial", folder, "fsync y.partial", "rename y.partial", folder]


def test_small_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"b": 1, "a": "ä"})
    assert path.read_text() == '{\n  "b": 1,\n  "a": "ä"\n}\n'

    def crash(partial: Path, final: Path) -> None:
        raise OSError("crash")

    monkeypatch.setattr(atomic, "commit", crash)
    with pytest.raises(OSError, match="crash"):
        atomic.write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"b": 1, "a": "ä"}
