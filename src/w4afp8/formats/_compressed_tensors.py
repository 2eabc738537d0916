"""config.json for compressed-tensors: one group for the experts, one for what stands in FP8 blocks, the rest ignored.

Patterns name modules of every family here; one that matches nothing harms nothing.  Agrees with: compressed-tensors
0.20 `QuantizationConfig` (tests/oracles).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVATIONS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
# Linears that are neither routed experts nor 16-bit: every one that a DeepSeek FP8 checkpoint stores in blocks.
FP8_LINEARS = (
    r"re:.*\.self_attn\..*_proj(_with_mqa)?$",
    r"re:.*\.self_attn\.indexer\.(wq_b|wk)$",
    r"re:.*\.mlp\.(gate|up|down)_proj$",
    r"re:.*\.mlp\.shared_experts\.(gate|up|down)_proj$",
    r"re:.*\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b)$",
    r"re:.*\.attn\.indexer\.wq_b$",
    r"re:.*\.ffn\.shared_experts\.w[123]$",
    r"re:mtp\.\d+\.[eh]_proj$",
)
SIXTEEN_BIT = (
    "lm_head",
    r"re:.*\.mlp\.(gate|router)$",
    r"re:.*\.eh_proj$",
    r"re:.*\.shared_head\.head$",
    r"re:.*\.indexer\.weights_proj$",
    "head",
    "embed",
    r"re:.*\.ffn\.gate$",
    r"re:.*\.compressor\.(wkv|wgate)$",
    r"re:mtp\.\d+\.(head|emb\.tok_emb)$",
)
BLOCKS = {
    "targets": list(FP8_LINEARS),
    "format": "float-quantized",
    "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128], "symmetric": True,
                "dynamic": False},
    "input_activations": {**ACTIVATIONS, "strategy": "group", "group_size": 128},
}  # fmt: skip


def beside_blocks(experts: Mapping[str, Any]) -> dict[str, Any]:
    """FP8 linears: each group with a format of its own; theirs is found first because it names its modules."""
    return _config("mixed-precision", {"group_0": dict(experts), "group_1": BLOCKS}, SIXTEEN_BIT)


def beside_sixteen_bits(experts: Mapping[str, Any]) -> dict[str, Any]:
    """Linears in 16 bits: one group and one format."""
    return _config(experts["format"], {"group_0": dict(experts)}, (*SIXTEEN_BIT, *FP8_LINEARS))


def _config(form: str, groups: dict[str, Any], ignore: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "config_groups": groups,
        "ignore": list(ignore),
    }
