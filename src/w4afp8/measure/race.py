"""How the fastest of several ways is found: each is verified before it is timed, those near the fastest in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from w4afp8.errors import KernelError
from w4afp8.kernels.schedules import Schedule
from w4afp8.measure.shapes import Gemm, Layer
from w4afp8.measure.stand import spelled
from w4afp8.measure.timing import Call, Timer, Timing

LOOK_REPLAYS = 3  # a first look at every way
WITHIN = 1.25  # of the fastest look: these are timed in full

Way = TypeVar("Way")


@dataclass(frozen=True, slots=True)
class Result(Generic[Way]):
    """The fastest way of one problem, and what was tried; ways by name."""

    best: Way
    timing: Timing
    tried: Mapping[str, float]  # -> microseconds
    wrong: Mapping[str, str]  # -> what it did
    refused: Mapping[str, str]  # -> why it does not run this problem


@dataclass(frozen=True, slots=True)
class Found:
    """The fastest schedule of a GEMM, or way of a layer: what a table keeps, and what was tried."""

    problem: Gemm | Layer
    tokens: int
    rows: int  # that reach this rank's experts on average
    best: Schedule | str  # of a layer: the kernel of one launch, or SEVERAL
    timing: Timing
    before_us: float | None  # what was chosen until now; None when it was found wrong
    tried: Mapping[str, float]
    wrong: Mapping[str, str]
    refused: Mapping[str, str]

    @property
    def key(self) -> str:
        """The line of the table."""
        p = self.problem
        return f"{p.experts} {p.rows} {p.cols}" if isinstance(p, Gemm) else f"{p.experts} {p.hidden} {p.inner}"

    @property
    def chosen(self) -> str:
        """The best way by name."""
        return self.best if isinstance(self.best, str) else spelled(self.best)


def race(
    what: str,
    ways: Sequence[Way],
    name: Callable[[Way], str],
    refusals: Callable[[Way], Sequence[str]],
    error: Callable[[Way], float],
    worst_error: float,
    calls: Callable[[Way], Sequence[Call]],
    time: Timer,
    on_way: Callable[[int], None],
) -> Result[Way]:
    """Verify each of `ways`, look at those that are right, time those near the fastest.

    Raises: KernelError with every reason when none is right.
    """
    looks: list[tuple[Way, float]] = []
    refused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for number, way in enumerate(ways, 1):
        on_way(number)
        if why := refusals(way):
            refused[name(way)] = "; ".join(why)
        elif not (off := error(way)) <= worst_error:
            wrong[name(way)] = f"an error of {off:.2g}" if off < float("inf") else "values that are not finite"
        else:
            looks.append((way, time(calls(way), replays=LOOK_REPLAYS).us))
    if not looks:
        raise KernelError(
            f"{what}: no schedule is right on this device\n"
            + "\n".join(f"  {row}: {reason}" for row, reason in {**refused, **wrong}.items())
        )
    fastest = min(us for _, us in looks)
    close = [(way, time(calls(way))) for way, us in looks if us <= WITHIN * fastest]
    best, timing = min(close, key=lambda one: one[1].us)
    tried = {name(way): us for way, us in looks} | {name(way): timed.us for way, timed in close}
    return Result(best, timing, tried, wrong, refused)
