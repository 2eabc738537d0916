"""Kimi-K2's int4 in groups of 32: regrouped where nothing changes, refused where it would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CT,
    SGLANG,
    config,
    convert,
    edit,
    made,
    raw,
    refused,
    tensors,
)
from torch import Tensor

from w4afp8 import pipeline
from w4afp8.errors import FormatError, RecipeError
from w4afp8.synthetic import write_checkpoint


@pytest.fixture
def kimi_config(toy_config: dict[str, Any]) -> dict[str, Any]:
    return toy_config | {"model_type": "kimi_k2", "hidden_size": 256, "moe_intermediate_size": 256}


def test_kimis_groups_of_32_become_128_where_four_are_one(kimi_config: dict[str, Any], tmp_path: Path) -> None:
    source = made(tmp_path / "kimi", kimi_config, "compressed_tensors_int4")
    name = "model.layers.1.mlp.experts.1.gate_proj"
    before = tensors(source)
    assert before[f"{name}.weight_scale"].shape == (256, 8)
    found = convert(source, CT, tmp_path / "ct")
    assert found["from"] == "compressed_tensors_int4"
    after = tensors(tmp_path / "ct")
    assert torch.equal(after[f"{name}.weight_packed"], before[f"{name}.weight_packed"])
    assert torch.equal(after[f"{name}.weight_scale"], before[f"{name}.weight_scale"][:, ::4])
    said = config(tmp_path / "ct")["quantization_config"]
    assert said["format"] == "pack-quantized" and list(said["config_groups"]) == ["group_0"]
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 128
    assert said["config_groups"]["group_0"]["input_activations"]["num_bits"] == 8
    everything_else = {n for n in before if ".experts." not in n}
    assert all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in everything_else)


def test_kimis_groups_that_differ_are_refused_and_name_quantize(kimi_config: dict[str, Any], tmp_path: Path) -> None:
    source, out = made(tmp_path / "kimi", kimi_config, "compressed_tensors_int4"), tmp_path / "out"
    name = "model.layers.2.mlp.experts.0.up_proj.weight_scale"

    def differ(held: dict[str, Tensor]) -> None:
        if name in held:
            held[name][7, 6] *= 2

    edit(source, differ)
    says = r"experts\.0\.up_proj.*row 7: the scales of inputs 128\.\.255 are .*not one of 128.*use w4afp8 quantize"
    refused(lambda: convert(source, CT, out), FormatError, says, out)
    refused(lambda: convert(source, SGLANG, out), RecipeError, "gate_proj.weight stands in bf16|static activation", out)


def test_int4_weights_in_groups_of_128_become_w4afp8_by_their_config(
    kimi_config: dict[str, Any], tmp_path: Path
) -> None:
    source = made(tmp_path / "w4a16", kimi_config, "compressed_tensors_int4")
    convert(source, CT, tmp_path / "ct")
    said = config(tmp_path / "ct")
    del said["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    (tmp_path / "ct" / "config.json").write_text(json.dumps(said))
    convert(tmp_path / "ct", CT, tmp_path / "w4a8")
    assert raw(tmp_path / "w4a8") == raw(tmp_path / "ct")
    assert "input_activations" in config(tmp_path / "w4a8")["quantization_config"]["config_groups"]["group_0"]
    out = tmp_path / "out"
    refused(lambda: convert(tmp_path / "w4a8", CT, out), RecipeError, f"stands in {CT} already", out)


def test_kimi_is_quantized_where_it_cannot_be_converted(
    kimi_config: dict[str, Any], small_recipe: Callable[..., Any], miniature: Path, tmp_path: Path
) -> None:
    source = tmp_path / "kimi"
    write_checkpoint(source, kimi_config, dtype="compressed_tensors_int4", tokenizer_from=miniature)
    pipeline.run(pipeline.prepare(source, small_recipe(), tmp_path / "out"))
    assert config(tmp_path / "out")["quantization_config"]["quant_method"] == "w4afp8"
