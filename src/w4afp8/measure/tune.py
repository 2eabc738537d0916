"""`tune`: every schedule that runs a problem, verified, then timed; the fastest of each goes into a table.

`tune gemm` times each GEMM alone, `tune moe` the two of a layer inside the fused layer of several launches, where L2
holds what the step before left there, and then that layer beside every kernel of one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from w4afp8.kernels import layers, schedules, sm90, tuned
from w4afp8.kernels.calls import GemmCall, MoECall
from w4afp8.kernels.layers import OneLaunch
from w4afp8.kernels.schedules import Schedule
from w4afp8.measure import data, truth
from w4afp8.measure.bench import Progress, expected_rows
from w4afp8.measure.cells import Kind
from w4afp8.measure.race import Found, race
from w4afp8.measure.shapes import Gemm, Layer, Shape
from w4afp8.measure.stand import SEVERAL, Stand, spelled
from w4afp8.measure.timing import Call

WAYS = (None, *layers.ROWS)  # of a layer; None: several launches

Timed = Callable[[Schedule], list[Call]]  # what is timed to judge a row
Pin = tuple[Gemm, Schedule]


def search(
    kind: Kind, shapes: Sequence[Shape], tokens: Sequence[int], stand: Stand, on_progress: Progress
) -> Iterator[Found]:
    """The best of every problem, one at a time.  Raises: KernelError when no schedule of one is right."""
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
        step = _step(on_progress, gemm.name, done, tokens, len(schedules.ROWS))
        yield _schedule(gemm, m, calls[0], _alone(stand, calls), stand, step)


def _layer(layer: Layer, tokens: Sequence[int], stand: Stand, on_progress: Progress) -> Iterator[Found]:
    """gate_up first, then down with the gate_up that won, then the layer in one launch beside the two."""
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
            step = _step(on_progress, gemm.name, done, tokens, len(schedules.ROWS))
            best = _schedule(gemm, m, call, timed, stand, step)
            if isinstance(best.best, Schedule):
                won.append((gemm, best.best))
            yield best
        if won:
            step = _step(on_progress, layer.name, done, tokens, len(WAYS))
            yield fastest_way(layer, m, whole, tuple(won), stand, step)


def _alone(stand: Stand, calls: Sequence[GemmCall]) -> Timed:
    return lambda row: [partial(stand.gemm, call, row, None) for call in calls]


def _inside(stand: Stand, whole: Sequence[MoECall], won: tuple[Pin, ...], gemm: Gemm) -> Timed:
    return lambda row: _several(stand, whole, (*won, (gemm, row)))


def _several(stand: Stand, whole: Sequence[MoECall], pins: tuple[Pin, ...]) -> list[Call]:
    return [partial(_pinned, pins, partial(stand.way, call, None, None)) for call in whole]


def _pinned(choices: Sequence[Pin], call: Call) -> None:
    """One layer under these schedules: the choice is made anew, past what is cached."""
    if not choices:
        call()
        return
    (gemm, row), *rest = choices
    with tuned.pinned(f"{gemm.experts} {gemm.rows} {gemm.cols}", row.kernel, row.split_groups):
        if rest:
            _pinned(rest, call)
            return
        schedules.forget()
        call()
    schedules.forget()


def _step(on_progress: Progress, name: str, done: int, tokens: Sequence[int], each: int) -> Callable[[int], None]:
    """One bar a problem, one step a way of it."""
    return lambda way: on_progress(name, done * each + way, len(tokens) * each)


def _schedule(
    gemm: Gemm, tokens: int, call: GemmCall, timed: Timed, stand: Stand, on_row: Callable[[int], None]
) -> Found:
    """The fastest schedule of one GEMM, verified on one call."""
    rows = expected_rows(gemm, tokens)
    problem = schedules.Problem(rows, gemm.experts, gemm.rows, gemm.cols)
    exact = truth.sample(call)
    result = race(
        f"{gemm.name} M={tokens}",
        schedules.ROWS,
        spelled,
        lambda row: row.refusals(problem),
        lambda row: exact.error(stand.gemm(call, row, truth.poisoned(call))),
        truth.WORST_ERROR,
        timed,
        stand.time,
        on_row,
    )
    before = result.tried.get(spelled(schedules.choose(problem)))
    return Found(gemm, tokens, rows, result.best, result.timing, before, result.tried, result.wrong, result.refused)


def fastest_way(
    layer: Layer,
    tokens: int,
    whole: Sequence[MoECall],
    won: tuple[Pin, ...],
    stand: Stand,
    on_way: Callable[[int], None],
) -> Found:
    """One launch or several, these under the schedules that won, else the chosen ones; verified on the first call.

    Raises: KernelError when no way is right.
    """
    call = whole[0]
    asked = sm90.layer_of(call)
    exact = truth.sample_layer(call)

    def calls(row: OneLaunch | None) -> list[Call]:
        return [partial(stand.way, one, row, None) for one in whole] if row else _several(stand, whole, won)

    result = race(
        f"{layer.name} M={tokens}",
        WAYS,
        _named,
        lambda row: row.cannot(asked) if row else (),
        lambda row: exact.error(stand.way(call, row, truth.poisoned_layer(call))),
        truth.WORST_LAYER_ERROR,
        calls,
        stand.time,
        on_way,
    )
    before = result.tried.get(_named(layers.choose(asked)))
    return Found(
        layer, tokens, asked.likely, _named(result.best), result.timing, before, result.tried, result.wrong,
        result.refused,
    )  # fmt: skip


def _named(row: OneLaunch | None) -> str:
    return row.kernel if row else SEVERAL
