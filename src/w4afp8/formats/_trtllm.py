"""How TensorRT-LLM is told which layer stands in which format: `quantized_layers` of quant_cfg.json (formats: B1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mixed_layers(config: Mapping[str, Any], experts: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSeek-V3's layers: attention, dense MLPs, shared experts in FP8 blocks, routed experts as `experts` says."""
    layers: dict[str, Any] = {}
    for layer in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{layer}"
        for name in ("fused_a", "q_b_proj", "kv_b_proj", "o_proj"):
            layers[f"{prefix}.self_attn.{name}"] = {"quant_algo": "FP8_BLOCK_SCALES"}
        dense = layer < config["first_k_dense_replace"]
        for name in ("gate_up_proj", "down_proj"):
            layers[f"{prefix}.mlp.{'' if dense else 'shared_experts.'}{name}"] = {"quant_algo": "FP8_BLOCK_SCALES"}
        if not dense:
            layers[f"{prefix}.mlp.experts"] = dict(experts)
    return layers
