"""GPT-OSS: experts stacked in two tensors a layer, gate and up rows in turn, biases everywhere, attention sinks.

Agrees with: the published checkpoints' names and shapes (formats: A3) and transformers 5.23 `GptOssConfig`.  In formats
that give every expert a name of its own the biases do so too (`experts.E.gate_proj.bias`).
There is no forward pass of this family here: its checkpoints are inspected and converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from w4afp8.families._config import Fields
from w4afp8.families._spec import PROJECTIONS, Expected, Family, Role, Sizes, Swiglu

ALPHA = 1.702  # of the gate's sigmoid; config.json does not say it
OFFSET = 1.0  # added to up
Row = tuple[str, Role, str, bool]  # (name, role, shape as letters, matrix)

OUTSIDE: tuple[Row, ...] = (
    ("model.embed_tokens.weight", Role.EMBEDDING, "V H", True),
    ("model.norm.weight", Role.NORM, "H", False),
    ("lm_head.weight", Role.HEAD, "V H", True),
)
LAYER: tuple[Row, ...] = (
    ("input_layernorm.weight", Role.NORM, "H", False),
    ("post_attention_layernorm.weight", Role.NORM, "H", False),
    ("self_attn.sinks", Role.ATTENTION, "A", False),
    *(
        (
            f"self_attn.{name}.{part}",
            Role.ATTENTION,
            f"{rows} {columns}" if part == "weight" else rows,
            part == "weight",
        )
        for name, rows, columns in (
            ("q_proj", "Q", "H"),
            ("k_proj", "K", "H"),
            ("v_proj", "K", "H"),
            ("o_proj", "H", "Q"),
        )
        for part in ("weight", "bias")
    ),
    ("mlp.router.weight", Role.ROUTER, "E H", True),
    ("mlp.router.bias", Role.ROUTER, "E", False),
)
# (projections in it, their shape): what a layer's experts share.
SHARED = ((PROJECTIONS[:2], "I H"), (PROJECTIONS[2:], "H I"))


@dataclass(frozen=True, kw_only=True)
class GptOssSizes(Sizes):
    """What naming and shaping gpt-oss's tensors need."""

    heads: int
    key_heads: int
    head_dims: int


def _letters(d: GptOssSizes) -> dict[str, int]:
    return {
        "V": d.vocabulary, "H": d.hidden, "I": d.expert_intermediate, "E": d.experts, "A": d.heads,
        "Q": d.heads * d.head_dims, "K": d.key_heads * d.head_dims,
    }  # fmt: skip


def _named(d: GptOssSizes, prefix: str, rows: tuple[Row, ...], layer: int | None) -> Iterator[Expected]:
    size = _letters(d)
    for name, role, letters, matrix in rows:
        yield Expected(prefix + name, role, tuple(size[letter] for letter in letters.split()), layer, matrix)


def _stacked(d: GptOssSizes, layer: int) -> Iterator[Expected]:
    """`experts.gate_up_proj` and `experts.down_proj`, and their biases."""
    size = _letters(d)
    for held, letters in SHARED:
        n, k = (size[letter] for letter in letters.split())
        name = "gate_up_proj" if len(held) > 1 else held[0]
        both = Expected(
            f"model.layers.{layer}.mlp.experts.{name}.weight", Role.EXPERT, (n * len(held), k), layer, True,
            stack=d.experts, holds=held, interleaved=len(held) > 1,
        )  # fmt: skip
        yield both
        yield replace(
            both, name=f"{both.stem}_bias", role=Role.EXPERT_BIAS, shape=both.shape[:1], matrix=False,
            holds=tuple(f"{projection}.bias" for projection in held),
        )  # fmt: skip


def _apart(d: GptOssSizes, layer: int) -> Iterator[Expected]:
    """Every expert's projections under names of their own."""
    size = _letters(d)
    for expert in range(d.experts):
        for held, letters in SHARED:
            shape = tuple(size[letter] for letter in letters.split())
            for projection in held:
                stem = f"{_expert(d, layer, expert)}.{projection}"
                yield Expected(f"{stem}.weight", Role.EXPERT, shape, layer, True)
                yield Expected(f"{stem}.bias", Role.EXPERT_BIAS, shape[:1], layer, False)


def _all(d: GptOssSizes, stacked: bool) -> dict[str, Expected]:
    found = list(_named(d, "", OUTSIDE, None))
    for layer in range(d.layers):
        found += _named(d, f"model.layers.{layer}.", LAYER, layer)
        found += (_stacked if stacked else _apart)(d, layer)
    return {item.name: item for item in found}


def _expected(d: GptOssSizes) -> dict[str, Expected]:
    return _all(d, stacked=True)


def _expected_apart(d: GptOssSizes) -> dict[str, Expected]:
    return _all(d, stacked=False)


def _expert(d: GptOssSizes, layer: int, expert: int) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}"


def _sizes(config: Mapping[str, Any]) -> GptOssSizes:
    """Raises: CheckpointError listing every field that is missing, mistyped or not supported."""
    fields = Fields(config)
    whole = fields.whole
    fields.only("attention_bias", True)
    fields.only("tie_word_embeddings", False)
    fields.only("hidden_act", "silu")
    d = GptOssSizes(
        vocabulary=whole("vocab_size"),
        hidden=whole("hidden_size"),
        expert_intermediate=whole("intermediate_size"),
        layers=whole("num_hidden_layers"),
        mtp_layers=0,
        dense_layers=0,
        experts=whole("num_local_experts"),
        experts_per_token=whole("num_experts_per_tok", 4),
        swiglu=Swiglu(limit=fields.number("swiglu_limit", 7.0), alpha=ALPHA, offset=OFFSET),
        heads=whole("num_attention_heads"),
        key_heads=whole("num_key_value_heads"),
        head_dims=whole("head_dim", 64),
    )
    fields.finish("gpt-oss")
    return d


def _without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


FAMILY = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    hub_organization="openai",
    dimensions=_sizes,
    expected=_expected,
    apart=_expected_apart,
    expert=_expert,
    without_mtp=_without_mtp,
)
