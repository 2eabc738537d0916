"""CheckpointReader against directories that are not what they claim, and beside the safetensors library."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader, read_json
from w4afp8.checkpoint.spec import DTYPES
from w4afp8.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def every_dtype() -> dict[str, Tensor]:
    """A tensor of each dtype, random bytes."""
    raw = torch.randint(0, 256, (96,), dtype=torch.uint8)
    return {
        name: (raw > 127 if name == "BOOL" else raw.clone().view(dtype)).reshape(2, -1)
        for name, dtype in DTYPES.items()
    }


def directory(folder: Path, files: dict[str, dict[str, Tensor]], weight_map: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    listed = {tensor: file for file, tensors in files.items() for tensor in tensors}
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": listed if weight_map is None else weight_map})
    )
    return folder


def two(**more: str) -> dict[str, str]:
    return {"a": "one.safetensors", "b": "two.safetensors", **more}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return directory(
        tmp_path / "model", {"one.safetensors": {"a": torch.ones(2)}, "two.safetensors": {"b": torch.ones(3)}}
    )


def refusal(folder: Path) -> str:
    """What the reader says; and nothing in the folder may have changed."""
    before = sorted((p.name, p.lstat().st_mtime_ns) for p in folder.iterdir())
    with pytest.raises(CheckpointError) as caught:
        CheckpointReader(folder)
    assert sorted((p.name, p.lstat().st_mtime_ns) for p in folder.iterdir()) == before
    return str(caught.value)


def test_every_dtype_is_read_as_safetensors_wrote_it(tmp_path: Path) -> None:
    tensors = every_dtype()
    folder = directory(tmp_path / "model", {"a.safetensors": tensors})
    with CheckpointReader(folder) as reader:
        assert reader.specs.keys() == tensors.keys()
        for name, tensor in tensors.items():
            spec = reader.specs[name]
            assert (spec.dtype, spec.shape) == (name, tuple(tensor.shape))
            found = reader.read(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
            pieces = torch.cat(list(reader.read_bytes(name, 7)))
            assert torch.equal(pieces, tensor.contiguous().view(torch.uint8).flatten())


def test_the_miniature_is_read_as_safetensors_reads_it(miniature: Path) -> None:
    with CheckpointReader(miniature) as reader:
        for shard in reader.shards:
            for name, tensor in load_file(miniature / shard).items():
                assert torch.equal(reader.read(name).view(torch.uint8), tensor.view(torch.uint8)), name


def test_no_data_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """A sparse terabyte costs its header alone."""
    header = json.dumps({"huge": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with CheckpointReader(folder) as reader:
        assert reader.specs["huge"].span_bytes == 2**40
        assert len(next(reader.read_bytes("huge", 10))) == 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    folder = directory(tmp_path / "model", {"model.safetensors": {"a": torch.arange(4)}})
    (folder / INDEX).unlink()
    with CheckpointReader(folder) as reader:
        assert reader.read("a").tolist() == [0, 1, 2, 3]


def test_a_missing_folder_config_or_index_is_named(tmp_path: Path, sound: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        CheckpointReader(tmp_path / "nowhere")
    (sound / INDEX).rename(tmp_path / "index")
    assert "neither" in refusal(sound)
    (tmp_path / "index").rename(sound / INDEX)
    (sound / "config.json").unlink()
    assert "config.json: not found" in refusal(sound)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "null", "\x00", "[" * 100_000, '{"a":' * 50_000])
def test_an_index_or_config_that_is_no_object_is_refused(sound: Path, content: str) -> None:
    (sound / INDEX).write_text(content)
    assert INDEX in refusal(sound)
    (sound / "config.json").write_text(content)
    assert "config.json" in refusal(sound)


def test_json_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(CheckpointError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 1}, {"a": None}, {"a": ["one.safetensors"]}])
def test_a_weight_map_that_is_no_map_of_names_is_refused(sound: Path, weight_map: Any) -> None:
    (sound / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in refusal(sound)


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "./one.safetensors",
     "one.safetensors/../one.safetensors", "a\0b", "x" * 300, "..\\x"],
)  # fmt: skip
def test_a_shard_name_that_leaves_the_folder_is_refused(sound: Path, shard: str) -> None:
    save_file({"c": torch.ones(1)}, sound.parent / "secret.safetensors")
    (sound / INDEX).write_text(json.dumps({"weight_map": two(c=shard)}))
    assert "fetch it again" in (said := refusal(sound)) or "plain file name" in said


def test_a_link_out_of_the_folder_is_refused_and_one_inside_followed(sound: Path, tmp_path: Path) -> None:
    (sound / "one.safetensors").rename(sound / "real.safetensors")
    (sound / "one.safetensors").symlink_to("real.safetensors")
    CheckpointReader(sound).close()
    (sound / "real.safetensors").rename(tmp_path / "outside.safetensors")
    (sound / "one.safetensors").unlink()
    (sound / "one.safetensors").symlink_to(tmp_path / "outside.safetensors")
    assert "link out of the checkpoint" in refusal(sound)


def test_links_of_a_hub_cache_are_followed_to_its_blobs_only(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    directory(snapshot, {"one.safetensors": {"a": torch.ones(2)}})
    (snapshot / "one.safetensors").rename(blobs / "0123")
    (snapshot / "one.safetensors").symlink_to("../../blobs/0123")
    CheckpointReader(snapshot).close()
    (blobs / "0123").rename(cache / "0123")
    (snapshot / "one.safetensors").unlink()
    (snapshot / "one.safetensors").symlink_to("../../0123")
    assert "link out" in refusal(snapshot)


def test_links_that_lead_nowhere_or_in_circles_are_missing_files(sound: Path) -> None:
    (sound / "one.safetensors").unlink()
    (sound / "one.safetensors").symlink_to("gone")
    assert "one.safetensors" in refusal(sound)
    (sound / "one.safetensors").unlink()
    (sound / "one.safetensors").symlink_to("one.safetensors")
    assert "one.safetensors" in refusal(sound)


def test_a_shard_that_is_no_file_is_refused(sound: Path) -> None:
    (sound / "one.safetensors").unlink()
    (sound / "one.safetensors").mkdir()
    assert "one.safetensors: not a file" in refusal(sound)
    (sound / "one.safetensors").rmdir()
    os.mkfifo(sound / "one.safetensors")
    assert "one.safetensors: not a file" in refusal(sound)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        (two(c="one.safetensors"), "c: .*places it in one.safetensors, which does not hold it"),
        (two(c="three.safetensors"), "three.safetensors: listed in .* but not in"),
        ({"b": "two.safetensors", "x": "one.safetensors"}, "a: one.safetensors holds it, .* does not list it"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "a: .*places it in two.safetensors"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_refused(sound: Path, weight_map: Any, says: str) -> None:
    (sound / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=says):
        CheckpointReader(sound)


def test_everything_wrong_with_a_checkpoint_is_said_at_once(sound: Path) -> None:
    (sound / "one.safetensors").write_bytes(b"short")
    (sound / INDEX).write_text(json.dumps({"weight_map": two(c="three.safetensors", d="../x")}))
    said = refusal(sound)
    assert all(word in said for word in ("one.safetensors", "three.safetensors", "'../x'", "3 problems"))


def test_a_tensor_nobody_knows_is_named(sound: Path) -> None:
    with CheckpointReader(sound) as reader, pytest.raises(CheckpointError, match="nothing: not in"):
        reader.read("nothing")


def test_a_file_that_shrinks_while_it_is_read_is_named(sound: Path) -> None:
    with CheckpointReader(sound) as reader:
        size = (sound / "one.safetensors").stat().st_size
        os.truncate(sound / "one.safetensors", size - 4)
        read: list[Callable[[], Any]] = [lambda: reader.read("a"), lambda: list(reader.read_bytes("a"))]
        for attempt in read:
            with pytest.raises(CheckpointError, match=r"a .*ends early"):
                attempt()


def open_below(folder: Path) -> list[str]:
    """Files of `folder` that this process has open."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sorted(link.name for link in links if link.parent == folder)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_a_reader_that_is_forgotten_leaves_nothing_open(sound: Path) -> None:
    reader = CheckpointReader(sound)
    for name in reader.specs:
        reader.read(name)
    assert open_below(sound) == ["one.safetensors", "two.safetensors"]
    del reader
    assert open_below(sound) == []
