"""Measured cells and tuned schedules as tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from w4afp8.measure.cells import Cell, Run
from w4afp8.measure.race import Found


def show_run(console: Console, run: Run) -> None:
    """What the machine does at most, then a row a cell."""
    where = ", ".join(f"{key} {value}" if key != "device" else value for key, value in run.about.items())
    console.print(where, markup=False, soft_wrap=True)
    console.print(
        f"floor: reads at {run.machine.bytes_us / 1e6:.2f} TB/s, e4m3 products at {run.machine.flop_us / 1e6:.0f} "
        "TFLOP/s, both measured in this run; behind a floor stands which of the two binds, b(ytes) or f(lops)",
        soft_wrap=True,
    )
    _print_whole(console, cells_table(run.cells))
    compared = [cell.ratio for cell in run.cells if cell.ratio]
    if compared:
        mean = exp(sum(map(log, compared)) / len(compared))
        name = next(cell.peer.name for cell in run.cells if cell.peer)
        faster = sum(ratio > 1 for ratio in compared)
        console.print(
            f"{name}'s time over ours: geometric mean {mean:.2f}, faster in {faster} of {len(compared)} cells"
        )


def cells_table(cells: Sequence[Cell]) -> Table:
    """A row a cell; the peer's columns only when one was measured."""
    peers = [cell.peer.name for cell in cells if cell.peer]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cell", no_wrap=True)
    heads = ["M", "rows/hit", "time us", "spread", "GB/s", "TFLOP/s", "floor us", "x floor", "of floor", "x read"]
    for head in [*heads, *([f"{peers[0]} us", "ratio"] if peers else [])]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("schedule", no_wrap=True)
    for cell in cells:
        row = [
            cell.shape, str(cell.tokens), f"{cell.rows / cell.hit:.1f}" if cell.hit else "0", f"{cell.us:.1f}",
            f"{cell.spread_us:.1f}", f"{cell.gb_s:.0f}", f"{cell.tflop_s:.1f}", f"{cell.floor_us:.1f} {cell.bound[0]}",
            f"{cell.x_floor:.2f}", f"{1 / cell.x_floor:.0%}", f"{cell.us / cell.read_us:.2f}",
        ]  # fmt: skip
        if peers:
            row += [f"{cell.peer.us:.1f}", f"{cell.ratio:.2f}"] if cell.peer else ["-", "-"]
        behind = cell.ratio is not None and cell.ratio < 1
        table.add_row(*row, cell.schedule, style="yellow" if behind else None)
    return table


def show_found(console: Console, found: Sequence[Found]) -> None:
    """The winners, what they replace, and every row that was wrong."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("problem", no_wrap=True)
    for head in ("M", "rows", "time us", "spread", "before us"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("schedule", "tried", "next best"):
        table.add_column(head, no_wrap=True)
    for f in found:
        others = sorted((us, row) for row, us in f.tried.items() if row != f.chosen)
        second = f"{others[0][1]} {others[0][0]:.1f}" if others else "-"
        table.add_row(
            f.problem.name, str(f.tokens), str(f.rows), f"{f.timing.us:.1f}", f"{f.timing.spread_us:.1f}",
            f"{f.before_us:.1f}" if f.before_us is not None else "wrong", f.chosen,
            f"{len(f.tried)}, {len(f.refused)} refused", second,
        )  # fmt: skip
    _print_whole(console, table)
    for f in found:
        for row, what in f.wrong.items():
            line = f"wrong: {f.problem.name} M={f.tokens} {row}: {what}; dropped"
            console.print(line, style="bold red", markup=False)


def _print_whole(console: Console, table: Table) -> None:
    """Every column in full, however narrow the terminal or the pipe: a number that is cut is a wrong number."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    wide = Console(file=console.file, width=max(console.width, needed), force_terminal=console.is_terminal,
                   no_color=console.no_color)  # fmt: skip
    wide.print(table)
