"""Random checkpoints that are as sound as published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert.survey import survey_values
from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.families._inventory import take_inventory
from w4afp8.synthetic import write_checkpoint

Toy = Callable[..., Path]


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"tie_word_embeddings": True}, {"hidden_size": 200}])
def test_what_is_written_is_a_sound_checkpoint(toy: Toy, dtype: str, changes: dict[str, Any]) -> None:
    folder = toy(dtype=dtype, **changes)
    with CheckpointReader(folder) as reader:
        family = families.of(reader.config)
        items = take_inventory(family, family.dimensions(reader.config), reader.specs)
        survey_values(reader, {}, lambda n: None)
        assert ("quantization_config" in reader.config) == (dtype == "fp8")
    assert {i.format.name for i in items.values() if i.format} == (
        {"bf16"} if dtype == "bf16" else {"bf16", "deepseek_fp8"}
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = read_all(folder)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()


def test_fp8_stands_where_the_published_files_have_it(toy: Toy, miniature: Path) -> None:
    published, ours = read_all(miniature), read_all(toy())
    for kind in ("q_a_proj.weight", "kv_b_proj.weight", "mlp.gate.weight", "shared_experts.up_proj.weight",
                 "eh_proj.weight", "embed_tokens.weight", "lm_head.weight", "e_score_correction_bias", "enorm.weight",
                 "shared_head.head.weight", "experts.0.down_proj.weight", "kv_a_layernorm.weight"):  # fmt: skip
        assert {t.dtype for n, t in ours.items() if n.endswith(kind)} == {
            t.dtype for n, t in published.items() if n.endswith(kind)
        }, kind


def test_numbers_depend_on_seed_and_name_alone(toy: Toy) -> None:
    base = read_all(toy("a"))
    resharded, deeper, other = (
        read_all(toy("b", shard_gb=1.0)),
        read_all(toy("c", num_hidden_layers=4)),
        toy("d", seed=1),
    )
    assert all(torch.equal(t.view(torch.uint8), resharded[n].view(torch.uint8)) for n, t in base.items())
    layer = {n: t for n, t in base.items() if ".layers.1." in n}
    assert all(torch.equal(t.view(torch.uint8), deeper[n].view(torch.uint8)) for n, t in layer.items())
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert not torch.equal(read_all(other)[name].view(torch.uint8), base[name].view(torch.uint8))
    assert not torch.equal(base[name].view(torch.uint8), base[name.replace("up", "gate")].view(torch.uint8))


def test_shards_keep_to_their_limit(toy: Toy) -> None:
    folder = toy(shard_gb=0.0003)
    shards = sorted(folder.glob("*.safetensors"))
    assert [s.name for s in shards] == [
        f"model-{i:05d}-of-{len(shards):06d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    for shard in shards:
        tensors = load_file(shard)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 300_000 or len(tensors) <= 2


def test_what_is_no_configuration_is_refused(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="hidden_size"):
        write_checkpoint(tmp_path / "x", toy_config | {"hidden_size": 0})
    with pytest.raises(RecipeError, match="unknown format 'fp4'"):
        write_checkpoint(tmp_path / "x", toy_config, dtype="fp4")
    with pytest.raises(RecipeError, match="activation scales come from calibration"):
        write_checkpoint(tmp_path / "x", toy_config, dtype="sglang_w4afp8")
    assert not (tmp_path / "x").exists()
