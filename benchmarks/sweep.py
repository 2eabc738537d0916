"""A sweep over cells that outlives cells that fail: each result a line in a file as soon as it is there, a deadline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from w4afp8.measure import cells
from w4afp8.measure.cells import Cell
from w4afp8.measure.floor import Machine
from worker import CellError, Worker

Record = Mapping[str, Any]
# What becomes a line, and words for whoever watches.
Found = Iterator[tuple[Record, str]]
Measure = Callable[[Sequence[Worker], str, int, Machine], Found]  # of one GEMM or layer and a number of tokens


def record_of(cell: Cell, beside: Record) -> Record:
    """A cell, and what stands beside it."""
    return {**json.loads(cells.cell_line(cell, {})), **beside}


def run(
    workers: Sequence[Worker],
    wanted: Sequence[tuple[str, int]],
    measure: Measure,
    out: Path,
    limit_s: float,
    first: Sequence[Record] = (),
) -> None:
    """Every cell wanted, its lines in `out` behind `first`; after `limit_s` none is begun.  Ends the workers."""
    begin = time.monotonic()
    try:
        said = workers[0].ask("machine")
    except CellError as error:
        raise SystemExit(str(error)) from None
    machine = Machine.from_json(said)
    about = {key: value for key, value in said.items() if isinstance(value, str)}
    cells.append(out, cells.machine_line(machine, about))
    for record in first:
        cells.append(out, json.dumps({**record, **about}))
    for number, (name, tokens) in enumerate(wanted):
        if time.monotonic() - begin > limit_s:
            print(f"not begun, {len(wanted) - number} cells from {name}:{tokens} on; call again with the same --out")
            break
        try:
            for record, words in measure(workers, name, tokens, machine):
                cells.append(out, json.dumps({**record, **about}))
                print(words, flush=True)
        except CellError as error:
            print(f"{name:20} {tokens:5} FAILED, {error}", flush=True)
            workers = [worker.again() for worker in workers]
    for worker in workers:
        worker.end()
    print(f"{time.monotonic() - begin:.0f} s")
