"""How a problem is run: a schedule is a row, choosing is refusals and a cost.

Letters as everywhere: T rows of x sorted by expert, E experts, N output rows, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from w4afp8.errors import KernelError
from w4afp8.kernels import tuned

SMS = 132
MAX_EXPERTS = 512


@dataclass(frozen=True, slots=True)
class Problem:
    """What the host knows about a grouped GEMM; the rows of each expert it does not know."""

    tokens: int
    experts: int
    rows: int
    cols: int
    group_scale: bool = False
    float_scale: bool = False  # the weight's scales are float32, not bfloat16


@dataclass(frozen=True, slots=True)
class Schedule:
    """One compiled kernel (csrc/sm90/grouped_gemm/instances/<kernel>.cu) and how its last wave is split.

    `split_groups` 0 runs whole tiles; n cuts the tiles of the last, partial wave along K into shares of n groups of
    128 or more, summed in a fixed order.  `cluster` 2 pairs neighbouring blocks of the weight's rows: each loads
    half of x for both.  Where a multiprocessor has `room` for two blocks and gets one, the next kernel's block may be
    there before this one has ended; where it gets two, one computes while the other waits.
    """

    kernel: str
    consumers: int
    max_tokens: int
    stage_groups: int
    split_groups: int
    group_scale: bool = False
    cluster: int = 1
    weight_scales: str = "bfloat16"  # or float32, or any
    room: int = 1  # for so many blocks on a multiprocessor
    blocks: int = 1  # that it gets

    def refusals(self, p: Problem) -> list[str]:
        """Why this row cannot run `p`; empty when it can."""
        why = []
        if p.group_scale != self.group_scale:
            why.append(f"activation scales are {'' if p.group_scale else 'not '}per group of 128")
        found = "float32" if p.float_scale else "bfloat16"
        if self.weight_scales not in (found, "any"):
            why.append(f"the weight's scales are {found}, this kernel reads {self.weight_scales}")
        if p.experts > MAX_EXPERTS:
            why.append(f"{p.experts} experts, the plan in shared memory holds {MAX_EXPERTS}")
        if p.rows % 64:
            why.append(f"N={p.rows} is no multiple of 64")
        if p.cols % (128 * self.stage_groups):
            why.append(f"K={p.cols} is no multiple of {128 * self.stage_groups}")
        return why


# By a kernel's first letter: are activation scales per group, and which type of weight scales does it read?
KINDS = {
    "t": (False, "bfloat16"),
    "p": (False, "bfloat16"),
    "s": (False, "bfloat16"),
    "f": (False, "float32"),
    "g": (True, "any"),
}

ROWS = tuple(
    Schedule(
        kernel,
        consumers,
        tokens,
        stage_groups,
        split,
        group_scale,
        cluster=2 if kernel.endswith("c") else 1,
        weight_scales=scales,
        room=2 if kernel[-1] in "dh" else 1,
        blocks=2 if kernel.endswith("d") else 1,
    )
    for kernel, consumers, tokens, stage_groups in (
        ("t8", 4, 8, 2),
        ("t16", 4, 16, 2),
        ("t24", 4, 24, 2),
        ("t32", 4, 32, 2),
        ("t32w", 3, 32, 2),
        ("t48", 3, 48, 2),
        ("t64", 3, 64, 2),
        ("t80w", 3, 80, 2),
        ("t96", 2, 96, 2),
        ("t112", 2, 112, 2),
        ("t128", 2, 128, 2),
        ("t152", 2, 152, 2),
        ("t160", 2, 160, 2),
        ("t8d", 2, 8, 2),
        ("t8h", 2, 8, 2),
        ("t16d", 2, 16, 2),
        ("t16h", 2, 16, 2),
        ("t32d", 2, 32, 2),
        ("t152c", 2, 152, 2),
        ("t160c", 2, 160, 2),
        ("p48", 2, 48, 2),
        ("p80", 2, 80, 2),
        ("s64", 2, 64, 1),
        ("f16", 4, 16, 2),
        ("f64", 2, 64, 1),
        ("f152", 2, 152, 2),
        ("g16", 4, 16, 1),
        ("g64", 3, 64, 1),
        ("g128", 2, 128, 1),
    )
    for group_scale, scales in [KINDS[kernel[0]]]
    for split in (0, 4)
)

Cost = Callable[[Problem, Schedule], float]


def cost_us(p: Problem, row: Schedule) -> float:
    """A rough time, fitted to sweeps on an H200: tiles over multiprocessors, a tile as long as its chain of groups.

    A group of 128 inputs costs a warpgroup 135 ns and 2.6 ns a token, more where three or four warpgroups share the
    schedulers' logic pipe.  Blocks that leave room start earlier.  Rows are assumed to fall on experts evenly, give or
    take a standard deviation.  A cluster costs what two blocks cost, and a whole pair of them where the last row tile
    has no neighbour: what x read half as often is worth is for a sweep to say.
    """
    hit = p.experts * (1 - (1 - 1 / p.experts) ** p.tokens) if p.experts > 1 else 1.0
    mean = p.tokens / hit
    most = mean + (mean**0.5 if p.experts > 1 else 0.0)
    runs = max(1, ceil(most / row.max_tokens))
    tokens = max(ceil(most / runs / 8) * 8, row.max_tokens // 2)
    tiles = hit * runs * ceil(p.rows / (64 * row.consumers * row.cluster)) * row.cluster
    chain_ns = (135 + 2.6 * tokens) * {2: 1.0, 3: 1.5, 4: 1.85}[row.consumers * row.blocks]
    tile_us = p.cols / 128 * chain_ns / 1e3 + 1.2 + 0.006 * tokens
    early_us = {(2, 1): 1.4, (2, 2): 0.8}.get((row.room, row.blocks), 0.0)
    at_once = SMS * row.blocks
    if row.split_groups:
        return max(tiles / at_once, row.split_groups / (p.cols / 128)) * tile_us + 5.2 - early_us
    return ceil(tiles / at_once) * tile_us - early_us


def choose(p: Problem, rows: Iterable[Schedule] = ROWS, cost: Cost = cost_us) -> Schedule:
    """The row measured fastest for `p`, else the cheapest that runs it; if none does, an error with every refusal."""
    return _choose(p, tuple(rows), cost)


@lru_cache(maxsize=4096)
def _choose(p: Problem, rows: tuple[Schedule, ...], cost: Cost) -> Schedule:
    refused = {row: row.refusals(p) for row in rows}
    fitting = [row for row, why in refused.items() if not why]
    if not fitting:
        raise KernelError(
            f"no schedule runs {p}:\n" + "\n".join(f"  {r.kernel}: {'; '.join(w)}" for r, w in refused.items())
        )
    measured = tuned.lookup(p.experts, p.rows, p.cols, p.tokens)
    known = [row for row in fitting if (row.kernel, row.split_groups) == measured]
    return known[0] if known else min(fitting, key=lambda row: cost(p, row))


def forget() -> None:
    """Choose anew, after a table of measured choices changed."""
    _choose.cache_clear()
