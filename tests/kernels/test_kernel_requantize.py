"""How blocks share the requantizing between the one-launch layer's GEMMs: requantize.cuh, compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from host_programs import compiled
from layer_plans import Kernel, Problem, ask, plan, routed, with_kernels

COUNTS = {
    "nothing is here": [0, 0, 0],
    "one row": [0, 1, 0],
    "experts without rows between": [0, 3, 0, 0, 8, 9, 0, 16, 17, 0, 0, 1],
    "every expert": [1 + e % 2 for e in range(40)],
    "one expert has all": [0, 203],
}
ROUTED = {
    f"{name}-{inner}": routed(256, inner, len(counts), counts, elsewhere=3)
    for name, counts in COUNTS.items()
    for inner in (256, 768, 2048)
}
Requantize = Callable[[Problem, Kernel, int, bool, int], dict[str, list[int]]]


@pytest.fixture(scope="session")
def requantize(tmp_path_factory: pytest.TempPathFactory) -> Requantize:
    """(problem, kernel, blocks, is the scale given, seed) -> groups as they were counted: by block, by run, all."""
    program = compiled("requantize", tmp_path_factory.mktemp("requantize"))

    def run(problem: Problem, kernel: Kernel, blocks: int, fixed: bool, seed: int) -> dict[str, list[int]]:
        counted: dict[str, list[int]] = {"block": [], "run": [], "all": []}
        for name, number in ask(program, problem, kernel, blocks, fixed, seed=seed):
            counted[name].append(int(number))
        return counted

    return run


@pytest.mark.parametrize(("problem", "kernel"), with_kernels(ROUTED))
@pytest.mark.parametrize("blocks", [132, 7, 1])
def test_every_group_is_requantized_once(requantize: Requantize, problem: Problem, kernel: Kernel, blocks: int) -> None:
    """Every value of every row, by equal shares; nothing is read before its run is waited for, or beside its rows."""
    runs, groups = len(plan(problem, kernel).runs), problem.inner // 128
    for fixed in (False, True):
        counted = requantize(problem, kernel, blocks, fixed, 2 * blocks + fixed)
        if kernel.few:  # rows are their own signal; the program has looked at them
            assert not any(counted.values())
            continue
        assert counted["run"] == [groups] * runs and counted["all"] == [groups * runs]
        assert len(counted["block"]) == blocks and sum(counted["block"]) == groups * runs
        assert max(counted["block"]) - min(counted["block"]) <= 1
