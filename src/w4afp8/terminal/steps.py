"""Progress of commands that are not runs: what, done, of how many."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from w4afp8.terminal.bar import Bar

SIGN_OF_LIFE_S = 60.0  # where nobody sees a bar


class Steps:
    """A bar per named step on a terminal; anywhere else one plain line a minute, so that a log shows life."""

    def __init__(self, console: Console, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock
        self._bar = Bar(console, quiet)
        self._said = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        self._bar.show(what, done, total)
        if self._bar.is_drawn or self._quiet or self._clock() - self._said < SIGN_OF_LIFE_S:
            return
        self._said = self._clock()
        self._console.print(f"{what} {done} of {total}", markup=False, soft_wrap=True)

    def close(self) -> None:
        """The screen is somebody else's from here on; a log still shows life."""
        self._bar.close()

    def __enter__(self) -> Steps:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
