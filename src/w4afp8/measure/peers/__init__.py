"""Other people's kernels, measured in the same run.  A public file here is a peer; its PEER drives what is installed.

No file here holds code of a peer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from w4afp8 import registry
from w4afp8.errors import DeviceError

if TYPE_CHECKING:
    from w4afp8.kernels.calls import MoECall
    from w4afp8.measure.cells import PeerTime
    from w4afp8.measure.data import Routing
    from w4afp8.measure.shapes import Gemm, Layer
    from w4afp8.measure.timing import Timer


class PeerGemm(Protocol):
    """One weight in the peer's own layout."""

    def time(self, tokens: int, routings: Sequence[Routing], clock: Timer) -> PeerTime | None:
        """The faster of its modes; None when it runs none of them."""


class PeerLayer(Protocol):
    """One layer of experts in the peer's own layout."""

    def time(self, calls: Sequence[MoECall], clock: Timer) -> PeerTime | None:
        """The whole layer; None when it does not run."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is found and driven."""

    name: str
    install: str  # the command that brings it
    version: Callable[[], str | None]  # None when it cannot be imported
    gemm: Callable[[Gemm, int], PeerGemm]  # (problem, number of weights)
    layer: Callable[[Layer], PeerLayer]
    # Compiles beforehand, on every core, what it will run with so many rows of x of each; how many modes of a problem.
    prepare: Callable[[Mapping[Gemm, Sequence[int]]], int] = lambda problems: 0


def names() -> tuple[str, ...]:
    """Every peer."""
    return registry.names(sys.modules[__name__])


def get(name: str) -> Peer:
    """The peer of that name.  Raises: RecipeError for an unknown one, DeviceError when it is not installed."""
    found: Peer = registry.load(sys.modules[__name__], name, "peer").PEER
    if found.version() is None:
        raise DeviceError(f"--peer {name}: found no such package, expected it beside w4afp8: {found.install}")
    return found
