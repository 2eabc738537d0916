"""The one live bar: a line per named piece of work on a terminal, nothing anywhere else."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """While entered, `show` draws how far each piece is; it vanishes afterwards.

    `one_line`: a new piece takes the place of the one before it.
    """

    def __init__(self, console: Console, quiet: bool = False, one_line: bool = False) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._one_line = one_line
        self._live: Progress | None = None
        if console.is_terminal and not quiet:
            self._live = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(compact=True), console=console, transient=True,
            )  # fmt: skip

    @property
    def is_drawn(self) -> bool:
        return self._live is not None

    def show(self, what: str, done: int, of: int, count: str | None = None) -> None:
        """`count` is what stands beside the bar, `done/of` when it is not given."""
        if self._live is None:
            return
        text = count or f"{done}/{of}"
        if what not in self._tasks:
            if self._one_line:
                for task in self._tasks.values():
                    self._live.remove_task(task)
                self._tasks.clear()
            self._tasks[what] = self._live.add_task(what, total=of, count=text)
        self._live.update(self._tasks[what], completed=done, total=of, count=text)

    def close(self) -> None:
        """Nothing is drawn from here on."""
        if self._live:
            self._live.stop()
        self._live = None

    def __enter__(self) -> Bar:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
