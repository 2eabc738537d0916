"""Threads for work that leaves Python's lock alone: reads, writes, digests, tensor arithmetic."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from w4afp8.errors import RecipeError

T = TypeVar("T")
MOST = 64
AHEAD = 2  # tasks per job that are begun or done before the first of them is handed over


def default() -> int:
    """One job more than cores: while one waits for the disk, the others compute."""
    return min(len(os.sched_getaffinity(0)) + 1, 8)


def check(jobs: int) -> int:
    """Raises: RecipeError for a number of jobs that is none."""
    if not 1 <= jobs <= MOST:
        raise RecipeError(f"--jobs is {jobs}, expected 1 to {MOST}")
    return jobs


def in_parallel(jobs: int, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results in the order of the tasks, `jobs` of which are at work; after the first failure none begins.

    At most AHEAD times `jobs` results wait for the first of them, so that they do not pile up where they are used
    slowly.  Each task has one of torch's threads: the tasks themselves are what runs side by side.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            waiting: deque[Future[T]] = deque()
            try:
                for task in tasks:
                    waiting.append(pool.submit(task))
                    if len(waiting) >= AHEAD * jobs:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
