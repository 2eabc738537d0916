"""A peer that is timed in turns with ours: asked once a turn, until it fails."""

from __future__ import annotations

import statistics
from typing import Any

from w4afp8.measure.cells import PeerTime
from worker import CellError, Worker


class PeerTurns:
    """What a peer took, turn by turn; `words` are what its process is asked with, none: there is no peer.

    A failure is kept, not raised: what we measured stands, and whoever asks raises it afterwards.
    """

    def __init__(self, worker: Worker, *words: Any) -> None:
        self.worker, self.words = worker, words
        self.found: list[dict[str, Any]] = []
        self.failed: CellError | None = None

    def ask(self) -> None:
        """One turn."""
        if not self.words or self.failed:
            return
        try:
            answer = self.worker.ask("peer", *self.words)
        except CellError as error:
            self.failed = error
            return
        if answer:  # it may have nothing that runs the cell
            self.found.append(answer)

    @property
    def each_us(self) -> list[float]:
        """The turns, in microseconds."""
        return [found["us"] for found in self.found]

    @property
    def time(self) -> PeerTime | None:
        """The median turn and the widest spread; how the fastest turn ran."""
        if not self.found:
            return None
        spread_us = max(found["spread_us"] for found in self.found)
        fastest = min(self.found, key=lambda found: found["us"])
        return PeerTime(**{**fastest, "us": statistics.median(self.each_us), "spread_us": spread_us})
