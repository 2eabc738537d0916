"""`tune`: every schedule that runs a problem, verified, then timed; the fastest of each goes into a table.

`tune gemm` times each GEMM alone, `tune moe` the two of a layer inside the fused layer, where L2 holds what the step
before left there.  A row that is wrong is reported and not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from w4afp8.errors import KernelError
from w4afp8.kernels import schedules, tuned
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.schedules import Schedule
from w4afp8.measure import data, truth
from w4afp8.measure.bench import Progress, expected_rows
from w4afp8.measure.cells import Kind
from w4afp8.measure.shapes import Gemm, Layer, Shape
from w4afp8.measure.stand import Stand, spelled
from w4afp8.measure.timing import Call, Timing

LOOK_REPLAYS = 3  # a first look at every row
WITHIN = 1.25  # of the fastest look: these are timed in full

Timed = Callable[[Schedule], list[Call]]  # what is timed to judge a row
Pin = tuple[Gemm, Schedule]


@dataclass(frozen=True, slots=True)
class Found:
    """The fastest schedule of one problem, and what was tried."""

    gemm: Gemm
    tokens: int
    rows: int  # of x
    best: Schedule
    timing: Timing
    before_us: float | None  # the schedule that was chosen until now; None when it was found wrong
    tried: Mapping[str, float]  # kernel/split -> microseconds
    wrong: Mapping[str, str]  # kernel/split -> what it did
    refused: Mapping[str, str]  # kernel/split -> why it does not run this problem

    @property
    def weight(self) -> str:
        """The key of the table."""
        return f"{self.gemm.experts} {self.gemm.rows} {self.gemm.cols}"


def search(
    kind: Kind, shapes: Sequence[Shape], tokens: Sequence[int], stand: Stand, on_progress: Progress
) -> Iterator[Found]:
    """The best schedule of every problem, one at a time.  Raises: KernelError when no schedule of one is right."""
    for shape in shapes:
        if kind == "moe":
            if shape.layer:
                yield from _layer(shape.layer, tokens, stand, on_progress)
        else:
            for gemm in shape.gemms:
                yield from _gemm(gemm, tokens, stand, on_progress)


def _gemm(gemm: Gemm, tokens: Sequence[int], stand: Stand, on_progress: Progress) -> Iterator[Found]:
    weights = data.weights(gemm, stand.device)
    for done, m in enumerate(tokens):
        drawn = data.routings(gemm, m, stand.device)
        if not drawn:
            continue
        calls = data.gemm_calls(weights, drawn, gemm.cols)
        yield _best(gemm, m, calls[0], _alone(stand, calls), stand, _step(on_progress, gemm, done, tokens))


def _layer(layer: Layer, tokens: Sequence[int], stand: Stand, on_progress: Progress) -> Iterator[Found]:
    """gate_up first, then down with the gate_up that won."""
    gate_up, down = (data.weight(gemm, stand.device) for gemm in layer.gemms)
    for done, m in enumerate(tokens):
        whole = data.layer_calls(layer, gate_up, down, m)
        won: list[Pin] = []
        for gemm, weight in zip(layer.gemms, (gate_up, down)):
            drawn = data.routings(gemm, m, stand.device)
            if not drawn:
                continue
            (call, *_) = data.gemm_calls([weight], drawn[:1], gemm.cols)
            timed = _inside(stand, whole, tuple(won), gemm)
            found = _best(gemm, m, call, timed, stand, _step(on_progress, gemm, done, tokens))
            won.append((gemm, found.best))
            yield found


def _alone(stand: Stand, calls: Sequence[GemmCall]) -> Timed:
    return lambda row: [partial(stand.gemm, call, row, None) for call in calls]


def _inside(stand: Stand, whole: Sequence[MoECall], won: tuple[Pin, ...], gemm: Gemm) -> Timed:
    return lambda row: [partial(_pinned, (*won, (gemm, row)), partial(stand.launches, call)) for call in whole]


def _pinned(choices: Sequence[Pin], call: Call) -> None:
    """One layer under these schedules: the choice is made anew, past what is cached."""
    (gemm, row), *rest = choices
    with tuned.pinned(f"{gemm.experts} {gemm.rows} {gemm.cols}", row.kernel, row.split_groups):
        if rest:
            _pinned(rest, call)
            return
        schedules.forget()
        call()
    schedules.forget()


def _step(on_progress: Progress, gemm: Gemm, done: int, tokens: Sequence[int]) -> Callable[[int], None]:
    """One bar a GEMM, one step a schedule."""
    each = len(schedules.ROWS)
    return lambda row: on_progress(gemm.name, done * each + row, len(tokens) * each)


def _best(
    gemm: Gemm,
    tokens: int,
    call: GemmCall,
    timed: Timed,
    stand: Stand,
    on_row: Callable[[int], None],
) -> Found:
    """Verify on one call, look at every row that is right, time those near the fastest."""
    rows = expected_rows(gemm, tokens)
    problem = schedules.Problem(rows, gemm.experts, gemm.rows, gemm.cols)
    refused = {spelled(row): "; ".join(why) for row in schedules.ROWS if (why := row.refusals(problem))}
    exact = truth.sample(call)
    looks: dict[Schedule, float] = {}
    wrong: dict[str, str] = {}
    for number, row in enumerate(schedules.ROWS, 1):
        on_row(number)
        if spelled(row) in refused:
            continue
        error = exact.error(stand.gemm(call, row, truth.poisoned(call)))
        if not error <= truth.WORST_ERROR:
            wrong[spelled(row)] = f"an error of {error:.2g}" if error < float("inf") else "values that are not finite"
        else:
            looks[row] = stand.time(timed(row), replays=LOOK_REPLAYS).us
    if not looks:
        raise KernelError(
            f"{gemm.name} M={tokens}: no schedule is right on this device\n"
            + "\n".join(f"  {row}: {what}" for row, what in {**refused, **wrong}.items())
        )
    fastest = min(looks.values())
    close = {row: stand.time(timed(row)) for row, us in looks.items() if us <= WITHIN * fastest}
    best = min(close, key=lambda row: close[row].us)
    chosen = schedules.choose(problem)
    before = close[chosen].us if chosen in close else looks.get(chosen)
    tried = {spelled(row): close[row].us if row in close else us for row, us in looks.items()}
    return Found(gemm, tokens, rows, best, close[best], before, tried, wrong, refused)
