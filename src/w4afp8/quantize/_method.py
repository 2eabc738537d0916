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
from w4afp8.quantize._grid import INT4, Grid

PRIOR_TOKENS = 4096  # of the whole layer that each expert may run to learn what its intermediate looks like


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert as the source has it, float32."""

    gate_IH: Tensor
    up_IH: Tensor
    down_HI: Tensor


@dataclass(frozen=True, slots=True)
class LayerPrior:
    """What is known of inputs in the layer as a whole, for experts that saw too few of their own."""

    gram_HH: Tensor  # float32, mean of x x^T over every token
    sample_mH: Tensor  # float32, tokens spread evenly over the calibration text

    def folded(self, scale_H: Tensor) -> LayerPrior:
        """The same after the norm was divided by `scale_H`."""
        return LayerPrior(self.gram_HH / scale_H[:, None] / scale_H, self.sample_mH / scale_H)


@dataclass(frozen=True, slots=True)
class ExpertInputs:
    """The calibration tokens of one expert.

    The first `routed` rows are the tokens that the router sends here; the rest are the best-scored tokens that just
    missed it, which top up an expert that saw too few.
    """

    x_nH: Tensor  # float32: the expert's inputs in the source model
    weight_n: Tensor  # float32: the router's weight of each
    routed: int
    prior: LayerPrior | None = None  # only for methods that ask for it


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
    wants_prior: ClassVar[bool] = False

    def __init__(self, options: BaseModel, grid: Grid = INT4) -> None:
        self.options, self.grid = options, grid

    def fold(self, view: LayerView) -> Fold | None:
        """A fold for the whole layer, or None to leave norm, router and shared expert as the source has them."""
        return None

    @abstractmethod
    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        """Choose the codes of one expert; `weights` and `inputs` already carry the layer's fold."""

    def statistics_bytes(self, dimensions: Dimensions, rows: int) -> int:
        """Most that the method holds for one expert of `rows` calibration tokens, beside its weights and inputs."""
        return 0
