"""Headers are distrusted: every hostile file gets one typed error that names what is wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from w4afp8.checkpoint.header import read_header, render_header
from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import CheckpointError


def raw_file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def file_of(path: Path, entries: Any, data: bytes = b"") -> Path:
    return raw_file(path, json.dumps(entries).encode(), data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (entry("F4"), "unknown dtype 'F4'"),
        (entry("float32"), "unknown dtype"),
        (entry(None), "unknown dtype"),
        (entry([]), "unknown dtype"),
        (entry({"a": 1}), "unknown dtype"),
        (entry(shape=[-2]), "non-negative whole numbers"),
        (entry(shape=[True, 2]), "non-negative whole numbers"),
        (entry(shape=[2.0]), "non-negative whole numbers"),
        (entry(shape=["2"]), "non-negative whole numbers"),
        (entry(shape=[None]), "non-negative whole numbers"),
        (entry(shape="2"), "non-negative whole numbers"),
        (entry(shape=2), "non-negative whole numbers"),
        (entry(shape=[2**63]), "non-negative whole numbers"),
        (entry(shape=[2**64 + 2]), "non-negative whole numbers"),
        (entry(shape=[2**62, 2**62]), "takes"),
        (entry(shape=[2**32, 2**32]), "takes"),
        (entry(shape=[3]), "takes 12 bytes, its offsets 0..8 hold 8"),
        (entry(shape=[1]), "takes 4 bytes"),
        (entry(shape=[1] * 100_000), "dimensions"),
        (entry(shape=[2**62] * 100_000), "dimensions"),
        (entry(offsets=[0]), "non-negative whole numbers"),
        (entry(offsets=[0, 8, 8]), "non-negative whole numbers"),
        (entry(offsets=[8, 0]), "takes"),
        (entry(offsets=[-8, 0]), "non-negative whole numbers"),
        (entry(offsets=[0.0, 8.0]), "non-negative whole numbers"),
        (entry(offsets={"begin": 0}), "non-negative whole numbers"),
        ({"dtype": "F32", "shape": [2]}, "expected an object"),
        ([1, 2], "expected an object"),
        ("F32", "expected an object"),
        (None, "expected an object"),
    ],
)
def test_an_entry_that_lies_is_named(tmp_path: Path, broken: Any, says: str) -> None:
    path = file_of(tmp_path / "a.safetensors", {"liar": broken}, b"\0" * 8)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(path)
    assert "liar" in str(caught.value)
    assert "a.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("entries", "size", "says"),
    [
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "b: .*overlaps"),
        ({"a": entry(), "b": entry()}, 8, "overlaps"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "b: .*hole"),
        ({"a": entry(offsets=[4, 12])}, 12, "a: .*hole"),
        ({"a": entry()}, 9, "1 bytes after its last tensor"),
        ({"a": entry()}, 7, "truncated"),
        ({"a": entry()}, 0, "truncated"),
        ({"a": entry("U8", [2**40], [0, 2**40])}, 4, "truncated"),
        ({}, 3, "3 bytes after"),
    ],
)
def test_data_that_is_not_covered_exactly_is_refused(tmp_path: Path, entries: Any, size: int, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_header(file_of(tmp_path / "a.safetensors", entries, b"\0" * size))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", 0),
        (b"{}", 1),
        (b"{}", 3),
        (b"{}", 2**63),
        (b"{}", 2**64 - 1),
        (b"{}", 100_000_001),
        (b"{" * 2, 2),
        (b"[]", 2),
        (b"12", 2),
        (b'"x"', 3),
        (b"null", 4),
        (b"\xff\xfe\xff\xfe", 4),
        (b"not json", 8),
        (b"[" * 200_000, 200_000),
        (b'{"a":' * 100_000, 500_000),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, header: bytes, length: int) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_header(raw_file(tmp_path / "a.safetensors", header, length=length))


@pytest.mark.parametrize("size", range(0, 8))
def test_a_file_shorter_than_its_length_field_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\1" * size)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    with pytest.raises(CheckpointError, match="names 'a' twice"):
        read_header(raw_file(tmp_path / "a.safetensors", f'{{"a":{one},"a":{one}}}'.encode(), b"\0" * 8))


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    entries = {"first": entry("X"), "second": entry(shape=[-1]), "third": entry()}
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        read_header(file_of(tmp_path / "a.safetensors", entries, b"\0" * 8))
    assert "first" in str(caught.value) and "second" in str(caught.value)


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_header(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content)
    try:
        specs, _ = read_header(path)
    except CheckpointError:
        return
    assert sum(spec.span_bytes for spec in specs) <= len(content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.floats()
    | st.sampled_from(sorted(DTYPES))
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = file_of(tmp_path_factory.mktemp("fuzz") / "a.safetensors", content, b"\0" * 8)
    try:
        read_header(path)
    except CheckpointError:
        return


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    """And what is still read lies inside the file."""
    content = bytearray(
        save({"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(3, dtype=torch.int8)}, {"format": "pt"})
    )
    content[at % len(content)] = value
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content)
    try:
        specs, _ = read_header(path)
    except CheckpointError:
        return
    assert all(spec.begin >= 8 and spec.begin + spec.span_bytes <= len(content) for spec in specs)


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    entries = {"scalar": entry(shape=[], offsets=[0, 4]), "none": entry(shape=[0, 7], offsets=[4, 4]),
               "__metadata__": {"format": "pt"}}  # fmt: skip
    specs, metadata = read_header(file_of(tmp_path / "a.safetensors", entries, b"\0" * 4))
    assert {s.name: s.shape for s in specs} == {"scalar": (), "none": (0, 7)}
    assert metadata == {"format": "pt"}


def test_a_rendered_header_is_read_back(tmp_path: Path) -> None:
    specs = [TensorSpec(name, dtype, (2, 3)) for name, dtype in (("b", "F32"), ("ä/'\"", "U8"), ("c", "F8_E8M0"))]
    header, placed = render_header(specs, {"format": "pt", "a": "b"})
    assert len(header) % 8 == 0
    path = tmp_path / "a.safetensors"
    path.write_bytes(header + b"\0" * sum(s.span_bytes for s in specs))
    found, metadata = read_header(path)
    assert [(s.name, s.dtype, s.shape, s.begin) for s in found] == [(s.name, s.dtype, s.shape, s.begin) for s in placed]
    assert metadata == {"format": "pt", "a": "b"}
