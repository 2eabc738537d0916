"""DeepSeek-V3, R1, V3.1 and V3.2: MLA attention, sigmoid router with correction bias and groups, MTP layers at the end.

V3.2 adds an indexer to every layer; Kimi-K2 is V3 under another name.  Agrees with: the published checkpoints' names
and shapes (formats: A1) and transformers 5.23 `DeepseekV3Config` and `DeepseekV32Config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from w4afp8.families._config import Fields, number
from w4afp8.families._spec import Dimensions, Expected, Family, Indexer, Role, Rope

# (name below `model.layers.L.`, role, shape as dimension letters); two letters are a matrix, one is a vector.
ATTENTION = (
    ("input_layernorm.weight", Role.NORM, "H"),
    ("post_attention_layernorm.weight", Role.NORM, "H"),
    ("self_attn.kv_a_proj_with_mqa.weight", Role.ATTENTION, "A H"),
    ("self_attn.kv_a_layernorm.weight", Role.NORM, "L"),
    ("self_attn.kv_b_proj.weight", Role.ATTENTION, "B L"),
    ("self_attn.o_proj.weight", Role.ATTENTION, "H O"),
)
QUERY_LORA = (
    ("self_attn.q_a_proj.weight", Role.ATTENTION, "Q H"),
    ("self_attn.q_a_layernorm.weight", Role.NORM, "Q"),
    ("self_attn.q_b_proj.weight", Role.ATTENTION, "P Q"),
)
QUERY_PLAIN = (("self_attn.q_proj.weight", Role.ATTENTION, "P H"),)
INDEXER = (
    ("self_attn.indexer.wq_b.weight", Role.ATTENTION, "X Q"),
    ("self_attn.indexer.wk.weight", Role.ATTENTION, "Y H"),
    ("self_attn.indexer.k_norm.weight", Role.NORM, "Y"),
    ("self_attn.indexer.k_norm.bias", Role.NORM, "Y"),
    ("self_attn.indexer.weights_proj.weight", Role.INDEXER, "Z H"),
)
DENSE = (
    ("mlp.gate_proj.weight", Role.DENSE_MLP, "D H"),
    ("mlp.up_proj.weight", Role.DENSE_MLP, "D H"),
    ("mlp.down_proj.weight", Role.DENSE_MLP, "H D"),
)
MOE = (
    ("mlp.gate.weight", Role.ROUTER, "E H"),
    ("mlp.gate.e_score_correction_bias", Role.ROUTER, "E"),
    ("mlp.shared_experts.gate_proj.weight", Role.SHARED_EXPERT, "S H"),
    ("mlp.shared_experts.up_proj.weight", Role.SHARED_EXPERT, "S H"),
    ("mlp.shared_experts.down_proj.weight", Role.SHARED_EXPERT, "H S"),
)
EXPERT = (
    ("gate_proj.weight", Role.EXPERT, "I H"),
    ("up_proj.weight", Role.EXPERT, "I H"),
    ("down_proj.weight", Role.EXPERT, "H I"),
)
MTP = (
    ("eh_proj.weight", Role.MTP, "H HH"),
    ("enorm.weight", Role.MTP, "H"),
    ("hnorm.weight", Role.MTP, "H"),
    ("embed_tokens.weight", Role.MTP, "V H"),
    ("shared_head.norm.weight", Role.MTP, "H"),
    ("shared_head.head.weight", Role.MTP, "V H"),
)
OUTSIDE = (("model.embed_tokens.weight", Role.EMBEDDING, "V H"), ("model.norm.weight", Role.NORM, "H"))
HEAD = ("lm_head.weight", Role.HEAD, "V H")


def _sizes(d: Dimensions) -> dict[str, int]:
    return {
        "H": d.hidden, "HH": 2 * d.hidden, "V": d.vocabulary, "D": d.dense_intermediate, "I": d.expert_intermediate,
        "S": d.expert_intermediate * d.shared_experts, "E": d.experts, "Q": d.q_lora or 0, "L": d.kv_lora,
        "A": d.kv_lora + d.rope_dims, "P": d.heads * d.query_head, "B": d.heads * (d.nope + d.value_head),
        "O": d.heads * d.value_head,
        **({"X": d.indexer.heads * d.indexer.head_dims, "Y": d.indexer.head_dims, "Z": d.indexer.heads}
           if d.indexer else {}),
    }  # fmt: skip


def _rows(d: Dimensions) -> Iterator[tuple[str, Role, str, int | None]]:
    """(full name, role, shape letters, layer) of everything that the config promises, in the order of the layers."""
    for name, role, letters in (*OUTSIDE, *(() if d.tied_head else (HEAD,))):
        yield name, role, letters, None
    for layer in range(d.all_layers):
        prefix = f"model.layers.{layer}."
        query = QUERY_LORA if d.q_lora else QUERY_PLAIN
        own = (*ATTENTION, *query, *(INDEXER if d.indexer else ()), *(MOE if d.is_moe(layer) else DENSE))
        for name, role, letters in (*own, *(MTP if d.is_mtp(layer) else ())):
            yield prefix + name, role, letters, layer
        if d.is_moe(layer):
            for expert in range(d.experts):
                for name, role, letters in EXPERT:
                    yield f"{_expert(d, layer, expert)}.{name}", role, letters, layer


def _expected(d: Dimensions) -> dict[str, Expected]:
    sizes = _sizes(d)
    return {
        name: Expected(name, role, tuple(sizes[letter] for letter in letters.split()), layer, " " in letters)
        for name, role, letters, layer in _rows(d)
    }


def _expert(d: Dimensions, layer: int, expert: int) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}"


def _dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Raises: CheckpointError listing every field that is missing, mistyped or not supported."""
    fields = Fields(config)
    whole, problems = fields.whole, fields.problems
    q_lora = None if config.get("q_lora_rank") is None else whole("q_lora_rank")
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    fields.only("hidden_act", "silu")
    fields.only("moe_layer_freq", 1)
    if config.get("attention_bias"):
        problems.append("attention_bias is true, expected false: no rule here names attention biases")
    if config.get("model_type") == "deepseek_v32" and q_lora is None:
        problems.append("q_lora_rank is None, expected a whole number: the indexer reads the latent query")
    d = Dimensions(
        vocabulary=whole("vocab_size"),
        hidden=whole("hidden_size"),
        dense_intermediate=whole("intermediate_size"),
        expert_intermediate=whole("moe_intermediate_size"),
        layers=whole("num_hidden_layers"),
        mtp_layers=whole("num_nextn_predict_layers", 0, 0),
        dense_layers=whole("first_k_dense_replace", 0, 0),
        heads=whole("num_attention_heads"),
        q_lora=q_lora,
        kv_lora=whole("kv_lora_rank"),
        nope=whole("qk_nope_head_dim"),
        rope_dims=whole("qk_rope_head_dim"),
        value_head=whole("v_head_dim"),
        experts=whole("n_routed_experts"),
        shared_experts=whole("n_shared_experts", 1),
        experts_per_token=whole("num_experts_per_tok"),
        expert_groups=whole("n_group", 1),
        groups_per_token=whole("topk_group", 1),
        normalize_weights=bool(config.get("norm_topk_prob", True)),
        routed_scale=fields.number("routed_scaling_factor", 1.0),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(config, problems),
        rope_interleaved=bool(config.get("rope_interleave", True)),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        indexer=Indexer(whole("index_n_heads"), whole("index_head_dim"), whole("index_topk"))
        if config.get("model_type") == "deepseek_v32"
        else None,
    )
    if d.experts % d.expert_groups or d.groups_per_token > d.expert_groups:
        problems.append(f"{d.experts} experts do not form {d.expert_groups} groups of which {d.groups_per_token} count")
    if d.experts_per_token > d.groups_per_token * (d.experts // d.expert_groups):
        problems.append(f"num_experts_per_tok {d.experts_per_token} is more than the chosen groups hold")
    fields.finish("DeepSeek-V3")
    return d


def _rope(config: Mapping[str, Any], problems: list[str]) -> Rope:
    """`rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (the published files)."""
    scaling: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    for field in ("rope_scaling", "rope_parameters"):
        found = config.get(field) or {}
        if isinstance(found, dict):
            scaling |= {key: value for key, value in found.items() if value is not None}
        else:
            problems.append(f"{field} is {found!r}, expected an object")
    theta = number(scaling, "rope_theta", 10000.0, problems, least=1.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind != "yarn":
        problems.append(f"rope type is {kind!r}, expected 'default' or 'yarn'")
        return Rope(theta)
    trained = number(config, "max_position_embeddings", 4096, problems, least=1.0)
    attention_factor = None
    if scaling.get("attention_factor") is not None:
        attention_factor = number(scaling, "attention_factor", 1.0, problems)
    return Rope(
        theta,
        factor=number(scaling, "factor", 1.0, problems, least=1.0),
        original_positions=int(number(scaling, "original_max_position_embeddings", trained, problems, least=1.0)),
        beta_fast=number(scaling, "beta_fast", 32.0, problems) or 32.0,
        beta_slow=number(scaling, "beta_slow", 1.0, problems) or 1.0,
        mscale=number(scaling, "mscale", 0.0, problems),
        mscale_all_dim=number(scaling, "mscale_all_dim", 0.0, problems),
        attention_factor=attention_factor,
        truncate=bool(scaling.get("truncate", True)),
    )


def _without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "num_nextn_predict_layers": 0}


FAMILY = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3", "deepseek_v32", "kimi_k2"),
    hub_organization="deepseek-ai",
    dimensions=_dimensions,
    expected=_expected,
    expert=_expert,
    without_mtp=_without_mtp,
)
