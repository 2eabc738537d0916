"""Several experts at a time: the same bytes, the first failure ends it, and torch is left as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from w4afp8 import conversion
from w4afp8.convert import jobs
from w4afp8.errors import RecipeError

Toys = Callable[[str], tuple[Path, Path]]
CT = "compressed_tensors_w4a8"


def test_results_come_in_order_from_several_threads_at_once() -> None:
    together = threading.Barrier(3, timeout=20)

    def task(number: int) -> int:
        together.wait()
        time.sleep(0.01 * (3 - number % 3))
        return number

    assert list(jobs.in_parallel(3, [lambda n=n: task(n) for n in range(9)])) == list(range(9))  # type: ignore[misc]


def test_after_a_failure_nothing_begins_and_torch_has_its_threads_back() -> None:
    begun: list[int] = []
    before = torch.get_num_threads()

    def task(number: int) -> None:
        begun.append(number)
        assert torch.get_num_threads() == 1
        time.sleep(0.02)
        if number == 1:
            raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        for _ in jobs.in_parallel(2, [lambda n=n: task(n) for n in range(100)]):  # type: ignore[misc]
            pass
    assert len(begun) < 20
    assert torch.get_num_threads() == before


def test_results_do_not_pile_up_before_a_slow_reader() -> None:
    begun: list[int] = []
    ahead = []
    for number, _ in enumerate(jobs.in_parallel(3, [lambda n=n: begun.append(n) for n in range(30)])):  # type: ignore[misc]
        time.sleep(0.005)
        ahead.append(len(begun) - number)
    assert max(ahead) <= jobs.AHEAD * 3 and len(begun) == 30


def test_a_conversion_does_not_depend_on_the_jobs(quantized_toys: Toys, tmp_path: Path) -> None:
    _, source = quantized_toys("sglang_w4afp8")
    trees = []
    for count in (1, 5):
        out = tmp_path / str(count)
        conversion.run(conversion.prepare(source, CT, out, 0.0005, count))
        trees.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]


@pytest.mark.parametrize("count", [0, -1, 65])
def test_no_jobs_and_too_many_are_refused(quantized_toys: Toys, tmp_path: Path, count: int) -> None:
    with pytest.raises(RecipeError, match=f"--jobs is {count}, expected 1 to 64"):
        conversion.prepare(quantized_toys("sglang_w4afp8")[1], CT, tmp_path / "out", 1.0, count)


def test_memory_is_asked_for_every_job(quantized_toys: Toys, tmp_path: Path) -> None:
    source = quantized_toys("sglang_w4afp8")[1]
    one, four = (conversion.prepare(source, CT, tmp_path / "out", 1.0, count).needs for count in (1, 4))
    assert sum(four.phases.values()) == 4 * sum(one.phases.values()) > 0
    assert 2 <= jobs.default() <= 8
