"""The nouns of quantization: what a method is shown, and what it must return.

Letters: n calibration tokens of one expert, H hidden, I intermediate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor

from w4afp8.families._spec import Dimensions
from w4afp8.formats._spec import GroupWeight


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert as the source has it, float32."""

    gate_IH: Tensor
    up_IH: Tensor
    down_HI: Tensor


@dataclass(frozen=True, slots=True)
class ExpertInputs:
    """The calibration tokens of one expert.

    The first `routed` rows are the tokens that the router sends here; the rest are the best-scored tokens that just
    missed it, which top up an expert that saw too few.
    """

    x_nH: Tensor  # float32: the expert's inputs in the source model
    weight_n: Tensor  # float32: the router's weight of each
    routed: int


@dataclass(frozen=True, slots=True)
class Fold:
    """A function-preserving change of scale between the norm before the experts and everything that reads it."""

    scale_H: Tensor  # the norm is divided by it, its consumers' columns are multiplied
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExpertResult:
    """One expert, quantized: its three projections and what was measured while choosing them."""

    gate: GroupWeight
    up: GroupWeight
    down: GroupWeight
    down_fold_I: Tensor | None = None  # up's rows were divided by it, down's columns multiplied
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerView:
    """A layer's experts, read one at a time as often as a method asks."""

    dimensions: Dimensions
    layer: int
    norm_H: Tensor  # post-attention norm
    router_EH: Tensor
    shared: tuple[Tensor, Tensor]  # gate, up of the shared expert
    experts: Callable[[], Iterator[tuple[int, ExpertWeights, ExpertInputs]]]
    routing_moves: Callable[[Tensor], float]  # fold scale -> share of tokens whose expert set changes


class Method(ABC):
    """A way to choose codes.  Deterministic: the same views and options give the same bytes."""

    Options: ClassVar[type[BaseModel]]

    def __init__(self, options: BaseModel) -> None:
        self.options = options

    def fold(self, view: LayerView) -> Fold | None:
        """A fold for the whole layer, or None to leave norm, router and shared expert as the source has them."""
        return None

    @abstractmethod
    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        """Choose the codes of one expert; `weights` and `inputs` already carry the layer's fold."""

    def statistics_bytes(self, dimensions: Dimensions) -> int:
        """Most that the method holds for one expert beside its weights and inputs."""
        return 0
