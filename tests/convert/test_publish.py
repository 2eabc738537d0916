"""Shards of a unit, and the last step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert import publish as publishing
from w4afp8.convert.execute import UnitWriter
from w4afp8.convert.plan import Unit
from w4afp8.convert.publish import publish, side_files
from w4afp8.convert.state import StateFiles
from w4afp8.errors import CheckpointError


def test_side_files_are_everything_but_weights_and_what_is_rewritten(tmp_path: Path) -> None:
    kept = ["LICENSE", "README.md", "configuration_deepseek.py", "generation_config.json", "tokenizer.json",
            "inference/model.py", "figures/a.png"]  # fmt: skip
    left = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "x.gguf", "a.bin",
            ".git/config", ".gitattributes", "hf_quant_config.json", "quant_cfg.json", "model.safetensors"]  # fmt: skip
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    assert side_files(tmp_path) == sorted(kept)


def test_links_to_elsewhere_are_not_published(tmp_path: Path) -> None:
    """A checkpoint that somebody else made must not carry this machine's files into an upload."""
    model, secret = tmp_path / "model", tmp_path / "secret.txt"
    model.mkdir()
    secret.write_text("secret")
    (model / "notes.txt").write_text("fine")
    (model / "same.txt").symlink_to("notes.txt")
    assert side_files(model) == ["notes.txt", "same.txt"]
    (model / "README.md").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"README\.md is a link out of the checkpoint"):
        side_files(model)


def unit() -> Unit:
    shards = {"one.safetensors": (TensorSpec("a", "F32", (2,)),), "two.safetensors": (TensorSpec("b", "F32", (3,)),)}
    return Unit("layer-000", 0, shards, ())


def test_a_unit_fills_its_shards_in_any_order(tmp_path: Path) -> None:
    with UnitWriter(tmp_path, unit()) as writer:
        writer.put("b", torch.ones(3))
        writer.put("a", torch.zeros(2))
        assert sorted(writer.digests) == ["a", "b"]
    assert load_file(tmp_path / "two.safetensors")["b"].tolist() == [1.0, 1.0, 1.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def test_an_unfinished_unit_publishes_no_shard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), UnitWriter(tmp_path, unit()) as writer:
        writer.put("a", torch.zeros(2))
        raise RuntimeError
    with pytest.raises(CheckpointError, match="never written"), UnitWriter(tmp_path, unit()) as writer:
        writer.put("b", torch.ones(3))
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_a_fold_changed_is_written_instead_of_the_source(tmp_path: Path, miniature: Path) -> None:
    name, other = "model.layers.1.mlp.gate.weight", "model.norm.weight"
    with CheckpointReader(miniature) as reader:
        specs = tuple(reader.specs[n] for n in (name, other))
        copying = Unit("layer-001", 1, {"one.safetensors": specs}, (name, other))
        changed = reader.read(name) * 2
        with UnitWriter(tmp_path, copying) as writer:
            writer.copy_rest(reader, {name: changed})
        found = load_file(tmp_path / "one.safetensors")
        assert torch.equal(found[name], changed)
        assert torch.equal(found[other], reader.read(other))


def test_states_survive_and_are_forgotten(tmp_path: Path) -> None:
    states, given = StateFiles(tmp_path), torch.randn(2, 3, 4)
    states.save("layer-001", given)
    assert torch.equal(StateFiles(tmp_path).load("layer-001"), given)
    states.drop("layer-001")
    states.drop("layer-001")
    assert not list(tmp_path.iterdir())


def test_the_index_comes_after_everything_and_the_config_last(
    tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w4afp8 import families
    from w4afp8.convert.plan_quantize import make_plan
    from w4afp8.families._inventory import take_inventory
    from w4afp8.recipes._load import build

    order: list[str] = []
    commit = publishing.atomic.commit

    def watch(partial: Path, final: Path) -> None:
        order.append(final.name)
        commit(partial, final)

    monkeypatch.setattr("w4afp8.checkpoint.atomic.commit", watch)
    monkeypatch.setattr("w4afp8.checkpoint.writer.commit", watch)
    with CheckpointReader(miniature) as reader:
        family = families.of(reader.config)
        d = family.dimensions(reader.config)
        plan = make_plan(family, d, reader.config, take_inventory(family, d, reader.specs), build({}, "x"))
        publish(tmp_path, plan, reader, {layer: {"gate_up": 0.5, "down": 0.25 * layer} for layer in range(1, 5)})
    assert order[-2:] == ["model.safetensors.index.json", "config.json"]
    assert {"act_scales.safetensors", "hf_quant_config.json", "quant_cfg.json", "tokenizer.json"} <= set(order[:-2])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": plan.total_bytes}, "weight_map": plan.weight_map}
    assert json.loads((tmp_path / "config.json").read_text()) == plan.config
    scales = load_file(tmp_path / "act_scales.safetensors")
    assert len(scales) == 4 * 16 * 3
    for expert in (0, 15):
        stem = f"model.layers.3.mlp.experts.{expert}"
        assert scales[f"{stem}.w1.input_scale"].tolist() == scales[f"{stem}.w3.input_scale"].tolist() == [0.5]
        assert scales[f"{stem}.w2.input_scale"].tolist() == [0.75]
    for name in side_files(miniature):
        assert (tmp_path / name).read_bytes() == (miniature / name).read_bytes()
