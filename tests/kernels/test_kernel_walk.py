"""Who works on what: the kernels' own walk over tiles, compiled for the CPU and followed block by block."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import pytest
from host_programs import compiled

from w4afp8.kernels import schedules
from w4afp8.kernels.schedules import Schedule

CLUSTERS = [row for row in schedules.ROWS if row.cluster > 1]
COUNTS = {
    "one token": [0, 1, 0],
    "off every tile boundary": [1, 7, 0, 9, 33, 0, 130, 65],
    "one expert has all": [0, 0, 1301, 0],
    "many experts": [e % 5 for e in range(300)],
    "a prefill": [100 + 7 * e for e in range(40)],
    "nothing": [0, 0],
}


class Segment(NamedTuple):
    """A line of host/walk.cpp."""

    block: int
    expert: int
    row_tile: int
    first_row: int
    tokens: int
    first_group: int
    groups: int
    first_peer: int
    end_peer: int
    owner: int
    shared: int
    last: int


Walk = Callable[[Schedule, int, int, int, list[int]], list[Segment]]


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """(row, blocks, N, K, rows of each expert) -> what the blocks do."""
    program = compiled("walk", tmp_path_factory.mktemp("walk"))

    def run(row: Schedule, blocks: int, rows: int, cols: int, counts: list[int]) -> list[Segment]:
        numbers = (row.consumers, row.max_tokens, row.stage_groups, row.cluster, blocks, row.split_groups, rows, cols)
        words = [str(n) for n in (*numbers, *counts)]
        out = subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout
        return [Segment(*map(int, line.split())) for line in out.splitlines()]

    return run


@pytest.mark.parametrize("row", schedules.ROWS, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_every_product_is_made_once(row: Schedule, counts: list[int], walk: Walk) -> None:
    """K in one piece or in pieces that one owner adds up; odd numbers of row tiles among them."""
    for rows, cols in ((320, 768), (2112, 1536)):
        done: dict[tuple[int, int, int], list[Segment]] = defaultdict(list)
        by_block: dict[int, list[Segment]] = defaultdict(list)
        for s in walk(row, schedules.SMS * row.blocks, rows, cols, counts):
            by_block[s.block].append(s)
            assert 0 < s.tokens <= row.max_tokens and s.groups > 0 and s.groups % row.stage_groups == 0
            done[s.expert, s.row_tile, s.first_row].append(s)
        assert all([s.last for s in own] == [0] * (len(own) - 1) + [1] for own in by_block.values())
        tiles = ceil(rows / (64 * row.consumers * row.cluster)) * row.cluster
        wanted, first = set(), 0
        for expert, count in enumerate(counts):
            for tile in range(tiles):
                wanted |= {(expert, tile, t) for t in range(first, first + count)}
            first += count
        seen = [(e, tile, t) for (e, tile, begin), (s, *_) in done.items() for t in range(begin, begin + s.tokens)]
        assert len(seen) == len(wanted) and set(seen) == wanted
        for parts in done.values():
            ordered = sorted(parts, key=lambda s: s.first_group)
            assert [s.first_group for s in ordered] == [sum(s.groups for s in ordered[:i]) for i in range(len(ordered))]
            assert sum(s.groups for s in ordered) == cols // 128
            assert [s.owner for s in ordered] == [1] + [0] * (len(ordered) - 1)
            teams = [s.block // row.cluster for s in ordered]
            assert teams[1:] == list(range(ordered[0].first_peer, ordered[0].end_peer)), "the owner adds other sums"
            assert len({s.block % row.cluster for s in ordered}) == 1, "partial sums lie in slots of one rank"


@pytest.mark.parametrize("row", CLUSTERS, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("blocks", [132, 130, 2])
def test_the_blocks_of_a_cluster_walk_together(row: Schedule, counts: list[int], blocks: int, walk: Walk) -> None:
    """Each sends the other half of the x that both need: another segment, or one more, and they wait forever."""
    by_block: dict[int, list[Segment]] = defaultdict(list)
    for s in walk(row, blocks, 704, 1536, counts):
        by_block[s.block].append(s)
    for even in range(0, blocks, 2):
        left, right = by_block[even], by_block[even + 1]
        assert [s.row_tile + 1 for s in left] == [s.row_tile for s in right]
        assert all(s.row_tile % 2 == 0 for s in left)
        assert [s._replace(block=0, row_tile=0) for s in left] == [s._replace(block=0, row_tile=0) for s in right]


@pytest.mark.parametrize("row", [r for r in schedules.ROWS if r.split_groups], ids=lambda r: r.kernel)
@pytest.mark.parametrize("blocks", [264, 132, 114])
def test_of_the_blocks_that_have_begun_one_team_waits_for_others(row: Schedule, blocks: int, walk: Walk) -> None:
    """Blocks begin in their order, and beside another kernel not all at once: if two teams waited, none might end."""
    cut = 0
    for counts in ([1] * 5, [9, 0, 33, 130, 65], [1301]):
        by_team: dict[int, list[Segment]] = defaultdict(list)
        for s in walk(row, blocks, 448, 7168, counts):
            if s.block % row.cluster == 0:
                by_team[s.block // row.cluster].append(s)
        for begun in range(1, blocks // row.cluster + 1):
            waiting = [t for t in range(begun) if any(s.end_peer > max(begun, s.first_peer) for s in by_team[t])]
            assert len(waiting) <= 1
        for team, segments in by_team.items():
            waits = [s.first_peer < s.end_peer for s in segments]
            cut += sum(waits)
            assert all(s.first_peer == team + 1 for s, waiting in zip(segments, waits, strict=True) if waiting)
            assert not any(waits[:-1]), "what others want is left before it waits"
            assert sum(not s.owner for s in segments) <= 1, "a slot holds the sums of one tile"
    assert cut
