"""DeepSeek-V4 and V4-Flash: residual streams, compressed attention, hash-routed first layers, MTP blocks under `mtp.`.

Names are the publisher's own, without a `model.` prefix (formats: A2); transformers 5.23 `DeepseekV4Config` for fields.
There is no forward pass of this family here: its checkpoints are inspected and converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from w4afp8.families._config import Fields
from w4afp8.families._spec import VECTOR_DTYPES, Expected, Family, Role, Sizes, Swiglu

WHOLE_NUMBERS = ("I64", "I32")
# (name, role, shape as letters, matrix): a matrix may stand in any weight format, the others are stored as they are.
Row = tuple[str, Role, str, bool]

OUTSIDE: tuple[Row, ...] = (
    ("embed.weight", Role.EMBEDDING, "V H", True),
    ("head.weight", Role.HEAD, "V H", True),
    ("norm.weight", Role.NORM, "H", False),
    ("hc_head_fn", Role.HYPER_CONNECTION, "M MH", False),
    ("hc_head_base", Role.HYPER_CONNECTION, "M", False),
    ("hc_head_scale", Role.HYPER_CONNECTION, "1", False),
)
LAYER: tuple[Row, ...] = (
    ("attn_norm.weight", Role.NORM, "H", False),
    ("ffn_norm.weight", Role.NORM, "H", False),
    *(
        (f"hc_{place}_{part}", Role.HYPER_CONNECTION, letters, False)
        for place in ("attn", "ffn")
        for part, letters in (("fn", "C MH"), ("base", "C"), ("scale", "3"))
    ),
    ("attn.wq_a.weight", Role.ATTENTION, "Q H", True),
    ("attn.wq_b.weight", Role.ATTENTION, "P Q", True),
    ("attn.wkv.weight", Role.ATTENTION, "D H", True),
    ("attn.wo_a.weight", Role.ATTENTION, "O F", True),
    ("attn.wo_b.weight", Role.ATTENTION, "H O", True),
    ("attn.q_norm.weight", Role.NORM, "Q", False),
    ("attn.kv_norm.weight", Role.NORM, "D", False),
    ("attn.attn_sink", Role.ATTENTION, "A", False),
    ("ffn.gate.weight", Role.ROUTER, "E H", True),
    ("ffn.shared_experts.w1.weight", Role.SHARED_EXPERT, "S H", True),
    ("ffn.shared_experts.w3.weight", Role.SHARED_EXPERT, "S H", True),
    ("ffn.shared_experts.w2.weight", Role.SHARED_EXPERT, "H S", True),
)
HASHED: tuple[Row, ...] = (("ffn.gate.tid2eid", Role.ROUTER, "V T", False),)
SCORED: tuple[Row, ...] = (("ffn.gate.bias", Role.ROUTER, "E", False),)
EXPERT: tuple[Row, ...] = (
    ("w1.weight", Role.EXPERT, "I H", True),
    ("w3.weight", Role.EXPERT, "I H", True),
    ("w2.weight", Role.EXPERT, "H I", True),
)
MTP: tuple[Row, ...] = (
    ("e_proj.weight", Role.MTP, "H H", True),
    ("h_proj.weight", Role.MTP, "H H", True),
    ("enorm.weight", Role.MTP, "H", False),
    ("hnorm.weight", Role.MTP, "H", False),
    ("norm.weight", Role.MTP, "H", False),
    ("emb.tok_emb.weight", Role.MTP, "V H", True),
    ("head.weight", Role.MTP, "V H", True),
    ("hc_head_fn", Role.HYPER_CONNECTION, "M MH", False),
    ("hc_head_base", Role.HYPER_CONNECTION, "M", False),
    ("hc_head_scale", Role.HYPER_CONNECTION, "1", False),
)
# Flash-Base has them (69,189 tensors), Flash leaves them out (69,187): they repeat the main model's.
REPEATED = ("emb.tok_emb.weight", "head.weight")
OVERLAPPED = 4  # this compression ratio looks at two windows at once, so its projections are twice as wide
INDEXER: tuple[Row, ...] = (
    ("attn.indexer.wq_b.weight", Role.ATTENTION, "X Q", True),
    ("attn.indexer.weights_proj.weight", Role.INDEXER, "Z H", True),
)
RATIO_OF_TYPE = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


@dataclass(frozen=True, kw_only=True)
class V4Sizes(Sizes):
    """What naming and shaping V4's tensors need."""

    heads: int
    head_dims: int
    q_lora: int
    o_lora: int
    o_groups: int
    shared_experts: int
    hash_layers: int
    streams: int
    index_heads: int
    index_dims: int
    ratios: tuple[int, ...]  # of each layer: 0 keeps every position, otherwise that many become one


def _letters(d: V4Sizes) -> dict[str, int]:
    return {
        "1": 1, "3": 3, "V": d.vocabulary, "H": d.hidden, "I": d.expert_intermediate, "E": d.experts,
        "S": d.expert_intermediate * d.shared_experts, "T": d.experts_per_token, "A": d.heads, "D": d.head_dims,
        "Q": d.q_lora, "P": d.heads * d.head_dims, "O": d.o_groups * d.o_lora, "F": d.heads * d.head_dims // d.o_groups,
        "M": d.streams, "MH": d.streams * d.hidden, "C": (2 + d.streams) * d.streams,
        "X": d.index_heads * d.index_dims, "Z": d.index_heads,
    }  # fmt: skip


def _compressor(prefix: str, ratio: int, dims: int) -> Iterator[tuple[str, Role, tuple[int, ...], bool]]:
    width = 2 * dims if ratio == OVERLAPPED else dims
    for name in ("wkv", "wgate"):
        yield f"{prefix}{name}.weight", Role.COMPRESSOR, (width, -1), True
    yield f"{prefix}ape", Role.COMPRESSOR, (ratio, width), False
    yield f"{prefix}norm.weight", Role.COMPRESSOR, (dims,), False


def _rows(d: V4Sizes) -> Iterator[Expected]:
    """Everything that the config promises, in the order of the layers."""
    size = _letters(d)

    def named(prefix: str, rows: tuple[Row, ...], layer: int | None) -> Iterator[Expected]:
        for name, role, letters, matrix in rows:
            shape = tuple(size[letter] for letter in letters.split())
            dtypes = WHOLE_NUMBERS if name == "ffn.gate.tid2eid" else VECTOR_DTYPES
            needed = role is not Role.MTP or name not in REPEATED
            yield Expected(prefix + name, role, shape, layer, matrix, dtypes=dtypes, required=needed)

    yield from named("", OUTSIDE, None)
    for layer in range(d.all_layers):
        prefix = _prefix(d.layers, layer)
        yield from named(prefix, LAYER, layer)
        yield from named(prefix, HASHED if layer < d.hash_layers else SCORED, layer)
        ratio = d.ratios[layer]
        if ratio:
            yield from _shaped(prefix, layer, d.hidden, _compressor("attn.compressor.", ratio, d.head_dims))
        if ratio == OVERLAPPED:
            yield from named(prefix, INDEXER, layer)
            yield from _shaped(prefix, layer, d.hidden, _compressor("attn.indexer.compressor.", ratio, d.index_dims))
        if d.is_mtp(layer):
            yield from named(prefix, MTP, layer)
        for expert in range(d.experts):
            yield from named(f"{prefix}ffn.experts.{expert}.", EXPERT, layer)


def _shaped(
    prefix: str, layer: int, hidden: int, rows: Iterator[tuple[str, Role, tuple[int, ...], bool]]
) -> Iterator[Expected]:
    for name, role, shape, matrix in rows:
        yield Expected(prefix + name, role, tuple(hidden if n < 0 else n for n in shape), layer, matrix)


def _prefix(layers: int, layer: int) -> str:
    return f"layers.{layer}." if layer < layers else f"mtp.{layer - layers}."


def _expected(d: V4Sizes) -> dict[str, Expected]:
    return {item.name: item for item in _rows(d)}


def _expert(d: V4Sizes, layer: int, expert: int) -> str:
    return f"{_prefix(d.layers, layer)}ffn.experts.{expert}"


def _sizes(config: Mapping[str, Any]) -> V4Sizes:
    """Raises: CheckpointError listing every field that is missing, mistyped or not supported."""
    fields = Fields(config)
    whole = fields.whole
    fields.only("scoring_func", "sqrtsoftplus")
    fields.only("hidden_act", "silu")
    fields.only("tie_word_embeddings", False)
    layers, mtp_layers = whole("num_hidden_layers"), whole("num_nextn_predict_layers", 0, 0)
    d = V4Sizes(
        vocabulary=whole("vocab_size"),
        hidden=whole("hidden_size"),
        expert_intermediate=whole("moe_intermediate_size"),
        layers=layers,
        mtp_layers=mtp_layers,
        dense_layers=0,
        experts=whole("n_routed_experts"),
        experts_per_token=whole("num_experts_per_tok"),
        swiglu=Swiglu(limit=fields.number("swiglu_limit", 10.0)),
        heads=whole("num_attention_heads"),
        head_dims=whole("head_dim"),
        q_lora=whole("q_lora_rank"),
        o_lora=whole("o_lora_rank"),
        o_groups=whole("o_groups"),
        shared_experts=whole("n_shared_experts", 1),
        hash_layers=whole("num_hash_layers", 3, 0),
        streams=whole("hc_mult", 4),
        index_heads=whole("index_n_heads"),
        index_dims=whole("index_head_dim"),
        ratios=_ratios(config, layers, mtp_layers, fields.problems),
    )
    if d.heads * d.head_dims % d.o_groups:
        fields.problems.append(f"{d.heads} heads of {d.head_dims} do not form {d.o_groups} output groups")
    fields.finish("DeepSeek-V4")
    return d


def _ratios(config: Mapping[str, Any], layers: int, mtp_layers: int, problems: list[str]) -> tuple[int, ...]:
    """The compression of each layer: `compress_ratios` (the published files) or `layer_types` (transformers).

    MTP blocks that the list does not reach keep every position.
    """
    kinds = config.get("compress_ratios")
    found = kinds if kinds is not None else config.get("layer_types")
    if not isinstance(found, list) or not layers <= len(found) <= layers + mtp_layers:
        problems.append(f"compress_ratios is {found!r}, expected a list of {layers} ratios, one for each layer")
        return (0,) * (layers + mtp_layers)
    ratios = [0] * (layers + mtp_layers)
    for layer, kind in enumerate(found):
        ratio = RATIO_OF_TYPE.get(kind) if isinstance(kind, str) else kind
        if type(ratio) is not int or ratio not in RATIO_OF_TYPE.values():
            problems.append(f"compress_ratios[{layer}] is {kind!r}, expected 0, 4 or 128")
        else:
            ratios[layer] = ratio
    return tuple(ratios)


def _without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    shorter = {**config, "num_nextn_predict_layers": 0}
    for field in ("compress_ratios", "layer_types"):
        if isinstance(config.get(field), list):
            shorter[field] = config[field][: config["num_hidden_layers"]]
    return shorter


FAMILY = Family(
    name="deepseek_v4",
    model_types=("deepseek_v4",),
    hub_organization="deepseek-ai",
    dimensions=_sizes,
    expected=_expected,
    expert=_expert,
    without_mtp=_without_mtp,
    blocks="deepseek_ue8m0",
    says_expert_dtype=True,
    projections=("w1", "w3", "w2"),
)
