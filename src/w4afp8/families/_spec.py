"""The nouns of a model family: roles, dimensions, the tensors that must be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Role(StrEnum):
    """What a tensor is for; reports and plans count bytes by it."""

    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    ATTENTION = "attention"
    DENSE_MLP = "dense mlp"
    ROUTER = "router"
    SHARED_EXPERT = "shared expert"
    EXPERT = "routed expert"
    EXPERT_BIAS = "expert bias"
    MTP = "mtp"
    INDEXER = "indexer"  # picks the positions that attention sees; 16 bits in every published checkpoint
    COMPRESSOR = "compressor"  # pools old positions (DeepSeek-V4)
    HYPER_CONNECTION = "hyper-connection"  # mixes residual streams (DeepSeek-V4)


VECTOR_DTYPES = ("BF16", "F32", "F16")
SCALAR_SHAPES = ((1,), ())  # of one number that is a tensor: published files have both


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor (or one matrix in whatever format) that a config promises.

    `name` ends in `.weight` for matrices; a matrix may stand in any weight format, a vector only in `dtypes`.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    layer: int | None  # None for what stands outside the layers
    matrix: bool
    # Experts that share tensors: `shape` is one expert's, and the tensors have a first axis of `stack` of them.
    stack: int = 0
    # Projections that share a matrix, their rows one after the other, or in turn where `interleaved`; none: its own.
    holds: tuple[str, ...] = ()
    interleaved: bool = False
    dtypes: tuple[str, ...] = VECTOR_DTYPES
    required: bool = True  # False: some releases leave it out, because the model has the same numbers elsewhere

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: plain, or YaRN when `factor` is above 1."""

    theta: float
    factor: float = 1.0
    original_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Swiglu:
    """What an expert does between its two products: act(gate) * (up + offset), both clamped to `limit` first.

    act(g) = g * sigmoid(alpha * g); the gate is clamped from above alone.  The default is plain silu(gate) * up.
    """

    limit: float | None = None
    alpha: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What every family has, and naming and shaping of experts need."""

    vocabulary: int
    hidden: int
    expert_intermediate: int
    layers: int
    mtp_layers: int
    dense_layers: int
    experts: int
    experts_per_token: int
    swiglu: Swiglu = Swiglu()

    @property
    def all_layers(self) -> int:
        return self.layers + self.mtp_layers

    def is_moe(self, layer: int) -> bool:
        return layer >= self.dense_layers

    def is_mtp(self, layer: int) -> bool:
        return layer >= self.layers


@dataclass(frozen=True)
class Indexer:
    """DeepSeek-V3.2's choice of positions: attention sees the `top` best of them, so all while there are no more."""

    heads: int
    head_dims: int
    top: int


@dataclass(frozen=True, kw_only=True)
class Dimensions(Sizes):
    """Every hyper-parameter that the forward pass (`model/`) and the shapes need."""

    dense_intermediate: int
    heads: int
    q_lora: int | None
    kv_lora: int
    nope: int
    rope_dims: int
    value_head: int
    shared_experts: int
    expert_groups: int
    groups_per_token: int
    normalize_weights: bool
    routed_scale: float
    norm_epsilon: float
    rope: Rope
    rope_interleaved: bool
    tied_head: bool
    indexer: Indexer | None = None

    @property
    def longest(self) -> int | None:
        """The longest sequence whose attention sees every position, as the forward pass here does; None for any."""
        return self.indexer.top if self.indexer else None

    @property
    def query_head(self) -> int:
        return self.nope + self.rope_dims


@dataclass(frozen=True, slots=True)
class Family:
    """Name rules, hyper-parameters and what may be quantized, for the models of one architecture."""

    name: str
    model_types: tuple[str, ...]
    hub_organization: str
    dimensions: Callable[[Mapping[str, Any]], Sizes]
    expected: Callable[[Any], dict[str, Expected]]  # of what `dimensions` returned
    expert: Callable[[Any, int, int], str]  # sizes, layer, e -> the stem of expert e's names
    without_mtp: Callable[[Mapping[str, Any]], dict[str, Any]]  # config -> config of the model without its MTP layers
    blocks: str = "deepseek_fp8"  # the format that the published checkpoints have FP8 matrices in
    says_expert_dtype: bool = False  # config.json has a field for what the experts' numbers are
    # The same tensors where every expert has a name of its own, for families whose experts share tensors.
    apart: Callable[[Any], dict[str, Expected]] | None = None
    projections: tuple[str, str, str] = PROJECTIONS  # how the family names an expert's gate, up and down


def expert_matrices(family: Family, sizes: Sizes, layer: int, expert: int) -> tuple[str, str, str]:
    """The weight names of one expert's gate, up and down projection."""
    stem = family.expert(sizes, layer, expert)
    gate, up, down = (f"{stem}.{projection}.weight" for projection in family.projections)
    return gate, up, down
