"""How a block begins before its offsets are known to be final: load.cuh, compiled for the CPU and followed.

What no GPU shows at will: the plan was made of another routing's offsets, or of nonsense, and weights are under way.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest
from host_programs import compiled

NONSENSE = 1 << 30
ROUTINGS = {  # what is read first -> what stands there when the kernel before has ended
    "the same": ([3, 0, 20, 1], [3, 0, 20, 1]),
    "others": ([3, 0, 20, 1], [0, 17, 2, 5]),
    "nothing, then many": ([0, 0, 0, 0], [9, 40, 9, 33]),
    "many, then nothing": ([9, 40, 9, 33], [0, 0, 0, 0]),
    "many, then one": ([40, 40, 40, 40], [0, 0, 1, 0]),
    "nonsense": ([NONSENSE, 5, 5, 5], [4, 0, 30, 2]),
}
Load = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """(numbers, counts read first, counts, more environment) -> what the program says."""
    program = compiled("load", tmp_path_factory.mktemp("load"))

    def run(
        numbers: tuple[int, ...], first: list[int], counts: list[int] | None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        words = [*map(str, (*numbers, *first)), *([",", *map(str, counts)] if counts is not None else [])]
        return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, env={**os.environ, **env})

    return run


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("ready", [0, 1], ids=["weights under way", "weights ready"])
@pytest.mark.parametrize("room", [1, 2])
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("cols", [256, 1280])
def test_every_stage_is_the_true_plans(
    load: Load, routing: tuple[list[int], list[int]], ready: int, room: int, stages: int, cols: int
) -> None:
    for seed in range(6):
        found = load((room, ready, 4 * (seed % 2), stages, seed, 448, cols), *routing)
        assert found.returncode == 0, found.stdout.splitlines()[-1:]
        assert bool(found.stdout) == any(routing[1])


@pytest.mark.parametrize("ready", [0, 1], ids=["weights under way", "weights ready"])
@pytest.mark.parametrize("room", [1, 2])
def test_without_offsets_x_waits_for_the_kernel_before(load: Load, ready: int, room: int) -> None:
    for seed in range(6):
        found = load((room, ready, 0, 4, seed, 448, 768), [20], None)
        assert found.returncode == 0 and found.stdout


def test_a_block_that_kept_its_first_plan_would_be_found(load: Load) -> None:
    for name in ("others", "nothing, then many", "many, then one"):
        found = load((2, 1, 0, 4, 1, 448, 1280), *ROUTINGS[name], KEEPS="1")
        assert found.returncode == 1 and "wrong: " in found.stdout
