"""What the one-launch layer has to do, said plainly: rows by expert, runs of them, tiles, and host/ programs to ask."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

GATE_UP, DOWN = 0, 1
STAGE_COLS = 256  # of K, in a pipeline stage


class Kernel(NamedTuple):
    name: str
    tokens: int  # rows of a tile
    few: bool = False


N8, N16, N8F = Kernel("n8", 8), Kernel("n16", 16), Kernel("n8f", 8, True)
FEW_PAIRS = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """A layer, and where the pairs of its tokens go; ids outside of [begin, begin + experts) are not here."""

    hidden: int
    inner: int
    experts: int
    ids: tuple[int, ...]
    top_k: int = 1
    begin: int = 0

    def cols(self, phase: int) -> int:
        return self.hidden if phase == GATE_UP else self.inner

    def stages(self, phase: int) -> int:
        return self.cols(phase) // STAGE_COLS

    def row_blocks(self, phase: int) -> int:
        """Of 64 weight rows."""
        return (2 * self.inner if phase == GATE_UP else self.hidden) // 64

    def row_tiles(self, phase: int) -> int:
        """Of four row blocks."""
        return self.row_blocks(phase) // 4

    def first_block(self, phase: int, row_tile: int) -> int:
        """The first row block of a tile; a gate_up tile has two of gate, and the two of up."""
        return (2 if phase == GATE_UP else 4) * row_tile


def routed(hidden: int, inner: int, experts: int, counts: Sequence[int], elsewhere: int = 0, begin: int = 3) -> Problem:
    """Counts of rows by expert, in any order, and so many pairs that are not here."""
    ids = [begin + e for e, count in enumerate(counts) for _ in range(count)]
    ids += [(-1, begin - 1, begin + experts, begin + experts + 700)[i % 4] for i in range(elsewhere)]
    random.Random(len(ids)).shuffle(ids)
    return Problem(hidden, inner, experts, tuple(ids), begin=begin)


class Run(NamedTuple):
    """Rows of one expert that a tile multiplies together."""

    expert: int
    first_row: int
    block8: int
    tokens: int
    shared: bool


class Plan(NamedTuple):
    local: list[int]  # expert of each pair, `experts` for none
    expert: list[tuple[int, int]]  # first row and eight
    slots: list[tuple[int, int, int, int, int]]  # of experts with rows: expert, rows, first row, eight, end of its runs
    runs: list[Run]


def plan(problem: Problem, kernel: Kernel) -> Plan:
    here = [i - problem.begin for i in problem.ids]
    local = [e if 0 <= e < problem.experts else problem.experts for e in here]
    expert, slots, runs = [], [], []
    row = block8 = 0
    for e in range(problem.experts):
        rows = local.count(e)
        expert.append((row, block8))
        for first in range(0, rows, kernel.tokens):
            tokens = min(kernel.tokens, rows - first)
            runs.append(Run(e, row + first, block8 + first // 8, tokens, rows > kernel.tokens))
        if rows:
            slots.append((e, rows, row, block8, len(runs)))
        row, block8 = row + rows, block8 + -(-rows // 8)
    return Plan(local, expert, slots, runs)


def line(problem: Problem, runs: Sequence[Run], phase: int) -> list[tuple[int, int]]:
    """A phase's tiles (run, row tile) in order: those that read the same weights are neighbours."""
    numbers = range(len(runs))
    return sorted(
        ((run, tile) for run in numbers for tile in range(problem.row_tiles(phase))),
        key=lambda t: (runs[t[0]].expert, t[1], t[0]),
    )


def with_kernels(problems: Mapping[str, Problem]) -> list[Any]:
    """Each problem with each kernel that takes it, as pytest's parameters."""
    return [
        pytest.param(problem, kernel, id=f"{name}-{kernel.name}")
        for name, problem in problems.items()
        for kernel in (N8, N16, N8F)
        if not kernel.few or len(problem.ids) <= FEW_PAIRS
    ]


def ask(program: str, problem: Problem, kernel: Kernel, blocks: int, *more: int, seed: int = 0) -> list[list[str]]:
    """The words of each line that the program prints."""
    p = problem
    numbers = (kernel.tokens, kernel.few, blocks, seed, p.top_k, p.begin, p.experts, p.hidden, p.inner, seed % 2, *more)
    words = [program, *(str(int(n)) for n in numbers)]
    found = subprocess.run(words, input=" ".join(map(str, p.ids)), capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, [*found.stdout.splitlines()[-1:], found.stderr]
    return [text.split() for text in found.stdout.splitlines()]
