"""How a fused layer is run: in one launch while experts have few rows, in several beyond.

A row here is one compiled kernel of csrc/sm90/moe/layer/instances/; no row that runs the layer means several launches.
`choose` takes what `w4afp8 tune moe` measured fastest for these sizes and about this many rows; where nothing was
measured, the bounds of the rows decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

from w4afp8.kernels import tuned

MAX_PAIRS = 4096
MAX_EXPERTS = 512
FEW_PAIRS, FEW_HIDDEN, FEW_INNER = 64, 8192, 2048  # what the kernel for few pairs holds


@dataclass(frozen=True, slots=True)
class Layer:
    """What the host knows about a layer; which experts the pairs hit it does not know."""

    pairs: int  # tokens times choices
    likely: int  # pairs that probably fall on local experts
    experts: int
    hidden: int
    inner: int
    tokens_a_block: int = 1  # so many a multiprocessor has, at most

    def most_rows(self) -> float:
        """Rows that few experts exceed: mean of those hit and a standard deviation, when pairs fall evenly."""
        hit = self.experts * (1 - (1 - 1 / self.experts) ** self.likely) if self.experts > 1 else 1.0
        mean = self.likely / hit
        return mean + (sqrt(mean) if self.experts > 1 and mean > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class OneLaunch:
    """A compiled kernel and the rows of an expert it multiplies at once."""

    kernel: str
    tokens: int
    up_to: float  # of `most_rows`: so far it is the fastest as a rule, on an H200
    # What it holds.
    max_pairs: int = MAX_PAIRS
    max_hidden: int | None = None
    max_inner: int | None = None
    max_tokens_a_block: int | None = None

    def cannot(self, layer: Layer) -> list[str]:
        """Why this kernel would go wrong on `layer`; empty when it is right."""
        why = []
        if layer.pairs > self.max_pairs:
            why.append(f"{layer.pairs} pairs, this kernel holds {self.max_pairs}")
        if layer.experts > MAX_EXPERTS:
            why.append(f"{layer.experts} experts, the plan in shared memory holds {MAX_EXPERTS}")
        if layer.hidden % 256 or layer.inner % 256:
            why.append(f"hidden {layer.hidden} or inner {layer.inner} is no multiple of 256")
        for name, size, most in (
            ("hidden", layer.hidden, self.max_hidden),
            ("inner", layer.inner, self.max_inner),
            ("tokens a multiprocessor", layer.tokens_a_block, self.max_tokens_a_block),
        ):
            if most is not None and size > most:
                why.append(f"{name} {size}, this kernel holds {most}")
        return why

    def refusals(self, layer: Layer) -> list[str]:
        """Why this kernel should not run `layer`: it cannot, or is slow there; empty when it should."""
        why = self.cannot(layer)
        if layer.most_rows() > self.up_to:
            why.append(f"experts with some {layer.most_rows():.0f} rows, fast up to {self.up_to}")
        return why


ROWS = (
    OneLaunch("n8f", 8, 6.5, FEW_PAIRS, FEW_HIDDEN, FEW_INNER, max_tokens_a_block=1),
    OneLaunch("n8", 8, 6.5),
    OneLaunch("n16", 16, 16.0),
)


@lru_cache(maxsize=4096)
def choose(layer: Layer) -> OneLaunch | None:
    """The row measured fastest for `layer`, else the first that should run it; None for several launches."""
    measured = tuned.lookup_layer(layer.experts, layer.hidden, layer.inner, layer.likely)
    if measured == tuned.SEVERAL:
        return None
    known = (row for row in ROWS if row.kernel == measured and not row.cannot(layer))
    return next(known, None) or next((row for row in ROWS if not row.refusals(layer)), None)


def forget() -> None:
    """Choose anew, after a table of measured choices changed."""
    choose.cache_clear()
