"""Miniatures made by transformers' own classes, random weights, saved by transformers: every tensor has a role.

Its gpt_oss saves experts in bfloat16, transposed, as nobody publishes them: tests/oracles loads what we write instead.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_deepseek_v4 import PUBLISHED
from transformers import AutoConfig, AutoModelForCausalLM

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.families._inventory import take_inventory


def renamed(spec: TensorSpec, rules: tuple[tuple[str, str], ...]) -> TensorSpec:
    name = spec.name
    for theirs, ours in rules:
        name = re.sub(theirs, ours, name)
    return TensorSpec(name, spec.dtype, spec.shape, spec.shard, spec.begin)


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v32", "deepseek_v4"])
def test_every_tensor_that_transformers_saves_has_a_role(golden: Path, tmp_path: Path, kind: str) -> None:
    arguments: dict[str, Any] = json.loads((golden / "transformers_names.json").read_text())[kind]["config_args"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **arguments), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    reader = CheckpointReader(tmp_path)
    config = {
        "model_type": kind,
        **arguments,
    }  # what transformers writes also promises MTP layers that it does not save
    rules = PUBLISHED if kind == "deepseek_v4" else ()
    specs = {spec.name: spec for spec in (renamed(spec, rules) for spec in reader.specs.values())}
    family = families.of(config)
    items = take_inventory(family, family.dimensions(config), specs)
    assert {spec.name for item in items.values() for spec in item.tensors} == set(specs)
    assert {item.format.name for item in items.values() if item.format} == {"bf16"}
