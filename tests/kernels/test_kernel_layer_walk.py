"""Who works on what in the one-launch layer: plan.cuh, compiled for the CPU and followed block by block."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest
from host_programs import compiled
from layer_plans import DOWN, GATE_UP, N8, N8F, N16, Kernel, Problem, ask, line, plan, routed, with_kernels

from w4afp8.measure.shapes import NAMED

TAIL_STAGES, TAIL_PART = 16, 3  # of a block, and one in so many: what is handed out at most
IN_TURN, DICE = 0, 1  # who walks next
COUNTS = {
    "nothing is here": [0, 0, 0, 0],
    "one row": [0, 1, 0],
    "one expert has all": [0, 0, 203, 0],
    "experts without rows between": [0, 3, 0, 0, 8, 9, 0, 16, 17, 0, 0, 1],
    "every expert": [1 + e % 3 for e in range(96)],
}
SIZES = [(256, 256), (768, 256), (2048, 768), (1280, 2048)]  # one, three, five, eight stages along K
GRIDS = [132, 114, 7, 1]
ROUTED = {
    f"{name}-{hidden}x{inner}": routed(hidden, inner, len(counts), counts, elsewhere=5)
    for name, counts in COUNTS.items()
    for hidden, inner in SIZES
}


class Segment(NamedTuple):
    """A line of host/layer_walk.cpp, and its number."""

    block: int
    phase: int
    run: int
    row_tile: int
    first_stage: int
    stages: int
    weight_stage: int
    first_row: int
    block8: int
    tokens: int
    peers: int
    owner: int
    shared: int
    ticket: int


class Walked(NamedTuple):
    problem: Problem
    kernel: Kernel
    blocks: int
    words: dict[str, list[tuple[int, ...]]]

    def segments(self, phase: int) -> list[Segment]:
        return [s for s in (Segment(*numbers) for numbers in self.words["segment"]) if s.phase == phase]


Walk = Callable[..., Walked]


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """(problem, kernel, blocks, order, late, stop, seed) -> what the blocks plan and do."""
    program = compiled("layer_walk", tmp_path_factory.mktemp("layer_walk"))

    def run(
        problem: Problem, kernel: Kernel, blocks: int, order: int = DICE, late: int = -1, stop: int = -1, seed: int = 0
    ) -> Walked:
        words: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for name, *numbers in ask(program, problem, kernel, blocks, order, late, stop, seed=seed):
            words[name].append(tuple(map(int, numbers)))
        return Walked(problem, kernel, blocks, words)

    return run


def check(walked: Walked, untaken: int = 0) -> int:
    """Every stage of every tile once, but for the last so many tiles; how many tiles were handed out."""
    runs, taken = plan(walked.problem, walked.kernel).runs, 0
    for phase in (GATE_UP, DOWN):
        taken = check_phase(walked, phase, untaken if phase == DOWN else 0)
        check_places(walked, phase)
    for block in range(walked.blocks):
        phases = [s[1] for s in walked.words["segment"] if s[0] == block]
        assert phases == sorted(phases)
    assert walked.words["plan"][0][1] == len(runs)
    return taken


def check_phase(walked: Walked, phase: int, untaken: int) -> int:
    blocks, stages = walked.blocks, walked.problem.stages(phase)
    tiles = line(walked.problem, plan(walked.problem, walked.kernel).runs, phase)
    place = {tile: i for i, tile in enumerate(tiles)}
    parts: dict[int, list[Segment]] = defaultdict(list)
    own: dict[int, list[int]] = {block: [] for block in range(blocks)}
    left, cut_stages = dict.fromkeys(range(blocks), 0), dict.fromkeys(range(blocks), 0)
    tickets: dict[int, int] = {}
    cut = len(tiles) % blocks
    for s in walked.segments(phase):
        assert (s.run, s.row_tile) in place, "a tile that is not there"
        at = place[s.run, s.row_tile]
        parts[at].append(s)
        own[s.block].append(at)
        left[s.block] += not s.owner
        cut_stages[s.block] += s.stages if at < cut else 0
        if s.ticket >= 0:
            tickets[s.ticket] = at
        assert at < cut or (s.stages, s.peers) == (stages, 0), "only tiles that are less than one a block are cut"
    assert sorted(parts) == list(range(len(tiles) - untaken))
    for found in parts.values():
        found.sort(key=lambda s: s.first_stage)
        assert [s.first_stage for s in found] == [sum(s.stages for s in found[:i]) for i in range(len(found))]
        assert sum(s.stages for s in found) == stages and min(s.stages for s in found) > 0
        assert [s.owner for s in found] == [1] + [0] * (len(found) - 1)
        assert [s.block - found[0].block for s in found] == list(range(len(found))), "the owner adds other sums"
        assert [s.peers for s in found] == [len(found) - 1] + [0] * (len(found) - 1)
    assert all(order == sorted(set(order)) for order in own.values()), "cut tiles first, the others in their order"
    assert max(left.values()) <= 1, "a slot holds the sums of one tile"
    assert max(cut_stages.values()) - min(cut_stages.values()) <= 1
    # What is handed out: the last ones, in order, as many as a number of waves.
    handed_out = len(tickets) + untaken
    assert [tickets[i] for i in range(len(tickets))] == list(range(len(tiles) - handed_out, len(tiles) - untaken))
    shares = [len([at for at in order if cut <= at < len(tiles) - handed_out]) for order in own.values()]
    assert len(set(shares)) == 1, "every block has as many whole tiles"
    most = 0 if walked.kernel.few or phase == GATE_UP else min(len(tiles) // blocks // TAIL_PART, TAIL_STAGES // stages)
    assert handed_out == most * blocks
    return len(tickets)


def check_places(walked: Walked, phase: int) -> None:
    p, runs = walked.problem, plan(walked.problem, walked.kernel).runs
    for s in walked.segments(phase):
        run = runs[s.run]
        assert (s.first_row, s.block8, s.tokens, s.shared) == (run.first_row, run.block8, run.tokens, run.shared)
        block = run.expert * p.row_blocks(phase) + p.first_block(phase, s.row_tile)
        assert s.weight_stage == block * p.stages(phase) + s.first_stage


def named(name: str, tokens: int) -> Problem:
    """A named layer whose router chooses at random; of a part of the experts, a part in the middle is here."""
    layer = NAMED[name].layer
    assert layer is not None
    dice = random.Random(tokens)
    ids = [e for _ in range(tokens) for e in dice.sample(range(layer.routed), layer.top_k)]
    begin = (layer.routed - layer.experts) // 2
    return Problem(layer.hidden, layer.inner, layer.experts, tuple(ids), layer.top_k, begin)


@pytest.mark.parametrize(("problem", "kernel"), with_kernels(ROUTED))
@pytest.mark.parametrize("blocks", GRIDS)
def test_every_stage_is_multiplied_once(walk: Walk, problem: Problem, kernel: Kernel, blocks: int) -> None:
    for seed in range(2):
        check(walk(problem, kernel, blocks, seed=seed))


def test_of_few_pairs_no_tile_is_handed_out(walk: Walk) -> None:
    assert check(walk(named("R1", 8), N8F, 132)) == 0 < check(walk(named("R1", 8), N8, 132))


@pytest.mark.parametrize("name", ["R1", "EP8", "TP8", "OSS"])
@pytest.mark.parametrize(
    ("tokens", "kernel"),
    [(1, N8F), (8, N8F), (16, N8), (64, N8), (128, N16), (256, N16), (512, N16)],
    ids=lambda v: str(getattr(v, "name", v)),
)
def test_named_layers(walk: Walk, name: str, tokens: int, kernel: Kernel) -> None:
    check(walk(named(name, tokens), kernel, 132))


@pytest.mark.parametrize("name", ["R1", "EP8", "TP8", "OSS"])
def test_whoever_asks_for_the_last_tiles(walk: Walk, name: str) -> None:
    problem, blocks = named(name, 64), 132
    whole = check(walk(problem, N8, blocks, IN_TURN))
    assert whole > 0
    asking = {s.block for s in walk(problem, N8, blocks, IN_TURN).segments(DOWN) if s.ticket >= 0}
    assert asking == {0}, "the first block has asked for all"
    late = walk(problem, N8, blocks, late=5, seed=2)
    assert check(late) == whole and not any(s.block == 5 and s.ticket >= 0 for s in late.segments(DOWN))
    for seed, stop in enumerate((0, 1, whole // 2, whole - 1)):
        assert check(walk(problem, N8, blocks, stop=stop, seed=seed), untaken=whole - stop) == stop


PLANNED = {
    **{name: ROUTED[name] for name in ROUTED if name.endswith("256x256")},
    "the last expert of all": routed(256, 256, 512, [0] * 511 + [5]),
    "as many pairs as there may be": routed(256, 256, 512, [9] * 448 + [1] * 64),
    "as many as a thread holds, and one": routed(256, 256, 300, [8 + (e < 161) for e in range(300)]),
    "many, and few of them here": routed(256, 256, 40, range(40), elsewhere=3000),
    "all go to one": routed(256, 256, 2, [0, 4096]),
}


@pytest.mark.parametrize(("problem", "kernel"), with_kernels(PLANNED))
def test_the_plan(walk: Walk, problem: Problem, kernel: Kernel) -> None:
    """Rows by expert, every expert beginning a new eight; ids of 32 and 64 bits, threads in any order."""
    wanted = plan(problem, kernel)
    for seed in range(4):
        words = walk(problem, kernel, 132, seed=seed).words
        assert words["plan"] == [(len(wanted.slots), len(wanted.runs))]
        assert words["slot"] == wanted.slots
        assert words["expert"] == wanted.expert
        assert [i for (i,) in words["id"]] == wanted.local
