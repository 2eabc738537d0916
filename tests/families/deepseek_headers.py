"""The published tables of DeepSeek-V3 and V3.2, and headers of sound checkpoints."""

from __future__ import annotations

from typing import Any

from w4afp8 import families
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.synthetic import specs_of, style_of

FAMILY = families.get("deepseek_v3")
# deepseek-ai/DeepSeek-V3 and DeepSeek-R1, the fields that decide shapes (formats: A1).
R1 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu", "moe_layer_freq": 1,
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "max_position_embeddings": 163840, "tie_word_embeddings": False,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
}  # fmt: skip
# The table of formats A1: name below `model.layers.L.`, shape, shape of its `weight_scale_inv`.
A1 = {
    "self_attn.q_a_proj.weight": ((1536, 7168), (12, 56)),
    "self_attn.q_b_proj.weight": ((24576, 1536), (192, 12)),
    "self_attn.kv_a_proj_with_mqa.weight": ((576, 7168), (5, 56)),
    "self_attn.kv_b_proj.weight": ((32768, 512), (256, 4)),
    "self_attn.o_proj.weight": ((7168, 16384), (56, 128)),
    "self_attn.q_a_layernorm.weight": ((1536,), None),
    "self_attn.kv_a_layernorm.weight": ((512,), None),
    "input_layernorm.weight": ((7168,), None),
    "post_attention_layernorm.weight": ((7168,), None),
}
A1_DENSE = {
    "mlp.gate_proj.weight": ((18432, 7168), (144, 56)),
    "mlp.up_proj.weight": ((18432, 7168), (144, 56)),
    "mlp.down_proj.weight": ((7168, 18432), (56, 144)),
}
A1_MOE = {
    "mlp.gate.weight": ((256, 7168), None),
    "mlp.gate.e_score_correction_bias": ((256,), None),
    "mlp.shared_experts.gate_proj.weight": ((2048, 7168), (16, 56)),
    "mlp.shared_experts.up_proj.weight": ((2048, 7168), (16, 56)),
    "mlp.shared_experts.down_proj.weight": ((7168, 2048), (56, 16)),
}
A1_EXPERT = {
    "gate_proj.weight": ((2048, 7168), (16, 56)),
    "up_proj.weight": ((2048, 7168), (16, 56)),
    "down_proj.weight": ((7168, 2048), (56, 16)),
}
A1_MTP = {
    "enorm.weight": ((7168,), None), "hnorm.weight": ((7168,), None), "eh_proj.weight": ((7168, 14336), None),
    "shared_head.norm.weight": ((7168,), None), "shared_head.head.weight": ((129280, 7168), None),
    "embed_tokens.weight": ((129280, 7168), None),
}  # fmt: skip
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]


def published() -> Shapes:
    """Every tensor of R1 with the shape of its scale, written from the table alone."""
    found: Shapes = {
        "model.embed_tokens.weight": ((129280, 7168), None),
        "lm_head.weight": ((129280, 7168), None),
        "model.norm.weight": ((7168,), None),
    }
    for layer in range(62):
        own: Shapes = A1 | (A1_DENSE if layer < 3 else A1_MOE) | (A1_MTP if layer == 61 else {})
        found |= {f"model.layers.{layer}.{name}": shapes for name, shapes in own.items()}
        for expert in range(256 if layer >= 3 else 0):
            found |= {f"model.layers.{layer}.mlp.experts.{expert}.{n}": s for n, s in A1_EXPERT.items()}
    return found


def header_specs(config: dict[str, Any], dtype: str = "fp8") -> dict[str, TensorSpec]:
    """The headers of a sound checkpoint."""
    expected = FAMILY.expected(FAMILY.dimensions(config))
    return {spec.name: spec for item in expected.values() for spec in specs_of(item, style_of(dtype))}


V32 = R1 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
# formats A1: what V3.2 adds to every layer below `self_attn.indexer.`
A1_INDEXER = {
    "wq_b.weight": ((8192, 1536), (64, 12)), "wk.weight": ((128, 7168), (1, 56)), "k_norm.weight": ((128,), None),
    "k_norm.bias": ((128,), None), "weights_proj.weight": ((64, 7168), None),
}  # fmt: skip
