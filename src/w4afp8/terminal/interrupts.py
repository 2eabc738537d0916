"""Ctrl-C once: finish the layer and stop.  Twice: stop now."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from rich.console import Console


class StopRequests:
    """While entered, SIGINT and SIGTERM only set `asked`; the second one raises KeyboardInterrupt."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.asked = False
        self._before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._console.print("stopping after this layer; once more to stop now", style="yellow")

    def __enter__(self) -> StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
