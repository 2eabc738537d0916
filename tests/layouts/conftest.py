"""Small checkpoints of every kind that a layout may be asked to hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import pipeline
from w4afp8.synthetic import write_checkpoint

GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 64, "hidden_size": 96,
    "intermediate_size": 160, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attention_bias": True, "hidden_act": "silu",
    "tie_word_embeddings": False, "swiglu_limit": 7.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def _int4s(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `int4` was asked for, quantized once; read only."""
    return {"home": tmp_path_factory.mktemp("int4")}


@pytest.fixture
def int4(
    toy: Callable[..., Path], small_recipe: Callable[..., Any], tmp_path: Path, _int4s: dict[str, Path]
) -> Callable[..., Path]:
    """A toy in sglang_w4afp8, with static activation scales: the test's own copy."""

    def make(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in _int4s:
            made = _int4s["home"] / f"{len(_int4s)}"
            pipeline.run(pipeline.prepare(toy(**changes), small_recipe(), made))
            _int4s[key] = made
        return Path(shutil.copytree(_int4s[key], tmp_path / "int4"))

    return make


@pytest.fixture
def gpt_oss_config() -> dict[str, Any]:
    """Sizes that no kernel likes."""
    return GPT_OSS


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """Experts stacked, gate and up rows in turn, biases."""
    write_checkpoint(tmp_path / "oss", GPT_OSS, dtype="gptoss_mxfp4", shard_gb=0.0001)
    return tmp_path / "oss"
