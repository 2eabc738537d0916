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
    MTP = "mtp"


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

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")


VECTOR_DTYPES = ("BF16", "F32", "F16")


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
class Dimensions:
    """Every hyper-parameter that the forward pass and the shapes need."""

    vocabulary: int
    hidden: int
    dense_intermediate: int
    expert_intermediate: int
    layers: int
    mtp_layers: int
    dense_layers: int
    heads: int
    q_lora: int | None
    kv_lora: int
    nope: int
    rope_dims: int
    value_head: int
    experts: int
    shared_experts: int
    experts_per_token: int
    expert_groups: int
    groups_per_token: int
    normalize_weights: bool
    routed_scale: float
    norm_epsilon: float
    rope: Rope
    rope_interleaved: bool
    tied_head: bool

    @property
    def query_head(self) -> int:
        return self.nope + self.rope_dims

    @property
    def all_layers(self) -> int:
        return self.layers + self.mtp_layers

    def is_moe(self, layer: int) -> bool:
        return layer >= self.dense_layers

    def is_mtp(self, layer: int) -> bool:
        return layer >= self.layers


@dataclass(frozen=True, slots=True)
class Family:
    """Name rules, hyper-parameters and what may be quantized, for the models of one architecture."""

    name: str
    model_types: tuple[str, ...]
    hub_organization: str
    dimensions: Callable[[Mapping[str, Any]], Dimensions]
    expected: Callable[[Dimensions], dict[str, Expected]]
    # A layer's names: `expert(layer, e)` is the stem of expert e, and so on.
    expert: Callable[[int, int], str]
    without_mtp: Callable[[Mapping[str, Any]], dict[str, Any]]  # config -> config of the model without its MTP layers


def expert_matrices(family: Family, layer: int, expert: int) -> tuple[str, str, str]:
    """The weight names of one expert's gate, up and down projection."""
    stem = family.expert(layer, expert)
    return f"{stem}.gate_proj.weight", f"{stem}.up_proj.weight", f"{stem}.down_proj.weight"
