"""The nouns of a runtime layout: what an engine holds in memory of one layer's routed experts.

Two stacks: w13 (the rows of gate and up) and w2 (down).  Each is stored as pieces: one of codes, one or more of scales.
Letters: E experts, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from w4afp8.formats._spec import GroupWeight, MicroWeight, Weight

STACKS: Mapping[str, tuple[str, ...]] = {"w13": ("gate_proj", "up_proj"), "w2": ("down_proj",)}
GATE_UP, UP_GATE = ("gate_proj", "up_proj"), ("up_proj", "gate_proj")
PAD = 128  # hidden and intermediate sizes are padded to a multiple of this, each half of w13 by itself
FORMS: Mapping[type[Weight], str] = {GroupWeight: "int4", MicroWeight: "mxfp4"}
TWOS_COMPLEMENT = tuple(range(16))
OFFSET_BINARY = tuple(code ^ 8 for code in range(16))


class Store(Protocol):
    """An `Order`, or what moves codes as one does."""

    @property
    def expert_axis(self) -> int: ...

    def refusal(self, shape: tuple[int, ...]) -> str | None: ...

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...

    def store(self, logical: Tensor, values: tuple[int, ...] = ()) -> Tensor: ...

    def load(self, stored: Tensor, shape: tuple[int, ...], values: tuple[int, ...] = ()) -> Tensor: ...


@dataclass(frozen=True)
class Piece:
    """One stored tensor: `{experts}.w13{suffix}` and `{experts}.w2{suffix}`, viewed as `dtype` once it is in order."""

    suffix: str
    order: Store
    dtype: str


@dataclass(frozen=True)
class Scales:
    """Group scales as an engine multiplies with them.

    `encode` takes [N, G] (float32, or the E8M0 bytes) to one logical tensor per piece, [N, ...] each, and refuses what
    is farther than a tolerance from what these hold; `decode` undoes it for G groups where the tolerance was 0.
    `shapes` are the logical shapes for (N, G).
    """

    pieces: tuple[Piece, ...]
    encode: Callable[[Tensor, float], tuple[Tensor, ...]]
    decode: Callable[[tuple[Tensor, ...], int], Tensor]
    shapes: Callable[[int, int], tuple[tuple[int, ...], ...]]
    searched: bool = False  # the only ones that a tolerance above 0 means something to


@dataclass(frozen=True)
class Holding:
    """How a layout holds one form of 4-bit weights: `codes[c]` is what the engine calls the code c."""

    codes: Piece
    scales: Scales
    values: tuple[int, ...] = TWOS_COMPLEMENT


@dataclass(frozen=True)
class Layout:
    """What one kind of engine reads.

    `int4` and `mxfp4`: how weights of that form are held, the first that holds every scale exactly; or why none is.
    """

    name: str
    version: int  # raised when the bytes of this layout change
    read_by: str  # engines with the releases that read exactly these bytes
    w13: tuple[str, str]  # the order of its halves
    int4: tuple[Holding, ...] | str
    mxfp4: tuple[Holding, ...] | str
    # Static activation scales, the largest of a rank's experts: float32 as recorded, or rounded to bfloat16 before.
    input_scale: str | None = None
    bias: Store | None = None  # the order of the experts' biases [E, N]; None: the engine adds none
    pad: int = PAD
    note: str = ""

    def halves(self) -> list[str]:
        """The order of w13's halves in an engine's words: gate and up."""
        return [name.removesuffix("_proj") for name in self.w13]

    def holdings(self, form: str) -> tuple[Holding, ...] | str:
        """How weights of this form (`int4`, `mxfp4`) are held, or why they are not."""
        found: tuple[Holding, ...] | str = getattr(self, form)
        return found
