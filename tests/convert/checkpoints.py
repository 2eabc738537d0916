"""Whole checkpoints to convert, and what the tests of conversions ask of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8 import conversion
from w4afp8.errors import W4AFP8Error
from w4afp8.synthetic import write_checkpoint

SGLANG, CT, MODELOPT = "sglang_w4afp8", "compressed_tensors_w4a8", "modelopt_w4a8_awq"
DEEPSEEK_MX, CT_MX, GPTOSS_MX = "deepseek_mxfp4", "compressed_tensors_mxfp4", "gptoss_mxfp4"
V4 = {
    "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 64, "q_lora_rank": 64, "num_experts_per_tok": 2,
    "n_routed_experts": 3, "n_shared_experts": 1, "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 2,
    "index_head_dim": 32, "index_topk": 8, "hc_mult": 2, "num_hash_layers": 1, "compress_ratios": [0, 0, 4, 128],
    "num_nextn_predict_layers": 1, "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus",
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 160, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2, "swiglu_limit": 7.0,
}  # fmt: skip


def convert(source: Path, target: str, out: Path) -> dict[str, Any]:
    return conversion.run(conversion.prepare(source, target, out, 0.0002))


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def raw(folder: Path) -> dict[str, tuple[Any, list[int], bytes]]:
    """Every tensor's dtype, shape and bytes, wherever it stands."""
    found = {}
    for name, t in tensors(folder).items():
        found[name] = (t.dtype, list(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors where they stand."""
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})


def made(folder: Path, base: dict[str, Any], style: str) -> Path:
    write_checkpoint(folder, base, dtype=style, shard_gb=0.0003)
    return folder


def refused(action: Callable[[], Any], kind: type[W4AFP8Error], says: str, out: Path) -> None:
    with pytest.raises(kind, match=says):
        action()
    assert not (out / "config.json").exists() and not list(out.glob("*.safetensors"))
