"""A run as a roofline: arithmetic intensity against the rate achieved, under the machine's lines; a panel a shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from w4afp8.errors import ResourceError
from w4afp8.measure.cells import Cell, Run

INK, GRID = "#222222", "#DDDDDD"
OURS, PEER = "#0072B2", "#D55E00"  # blue and vermilion stay apart in print and for colour-blind eyes
MOST_COLUMNS = 4
LABELLED = (1, 8, 64, 512, 4096)  # token counts written beside our points
FEW = 5  # so many points are all labelled
FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Before anything is measured.  Raises: ResourceError without matplotlib, or for a file that cannot be one."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ResourceError('--plot: matplotlib is not installed; pip install "w4afp8[plot]"') from None
    if path.suffix not in FORMATS:
        raise ResourceError(f"--plot {path}: expected a file name that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ResourceError(f"--plot {path}: there is no folder {path.parent}")


def draw(run: Run, path: Path) -> None:
    """Write the plot; its format is the file name's.  Intensity counts the bytes of the floor.

    Raises: ResourceError when no cell multiplied anything: a rank's experts may be chosen by no token.
    """
    from matplotlib.figure import Figure

    run = replace(run, cells=tuple(cell for cell in run.cells if cell.flops > 0))  # the axes are logarithmic
    if not run.cells:
        raise ResourceError(f"--plot {path}: no token chose an expert of this rank; take more --tokens")
    shapes = list(dict.fromkeys(cell.shape for cell in run.cells))
    columns = min(MOST_COLUMNS, ceil(len(shapes) ** 0.5))
    rows = ceil(len(shapes) / columns)
    size = (max(8.0, 4.6 * columns), max(5.5, 3.8 * rows) + 0.9)
    figure = Figure(figsize=size, dpi=140, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, shape in zip(panels, shapes):
        roof(axes, run)
        _points(axes, [cell for cell in run.cells if cell.shape == shape])
        _dress(axes, shape)
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    kind = "fused MoE layer" if run.cells[0].kind == "moe" else "GEMM"
    where = ", ".join(run.about[key] for key in ("device", "date") if key in run.about)
    figure.supxlabel("arithmetic intensity: flop per byte that must be moved", color=INK, fontsize=12)
    figure.supylabel("TFLOP/s", color=INK, fontsize=12)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(
        list(lines.values()), list(lines), loc="outside upper center", ncols=3, fontsize=10, frameon=False,
        title=f"W4AFP8 {kind} on {where}", title_fontsize=13,
    )  # fmt: skip
    figure.savefig(path)


def roof(axes: Any, run: Run) -> None:
    """The two floors of the machine, and where they meet."""
    memory, compute = run.machine.bytes_us, run.machine.flop_us
    ridge = compute / memory
    intensities = [cell.flops / cell.bytes for cell in run.cells]
    left, right = min(intensities) / 1.6, max(*intensities, ridge) * 1.6
    label = f"floor: {memory / 1e6:.2f} TB/s read, {compute / 1e6:.0f} TFLOP/s e4m3, this run"
    heights = [left * memory / 1e6, compute / 1e6, compute / 1e6]
    axes.plot([left, ridge, right], heights, color=INK, linewidth=1.8, label=label)
    axes.set_xlim(left, right)


def _points(axes: Any, found: Iterable[Cell]) -> None:
    cells: Sequence[Cell] = sorted(found, key=lambda cell: cell.tokens)
    x = [cell.flops / cell.bytes for cell in cells]
    beside = [(at, cell.flops / cell.peer.us / 1e6, cell.peer.name) for at, cell in zip(x, cells) if cell.peer]
    if beside:
        style = {"marker": "o", "markersize": 7, "markerfacecolor": "white", "linewidth": 1, "linestyle": ":"}
        axes.plot([b[0] for b in beside], [b[1] for b in beside], color=PEER, label=beside[0][2], **style)
    rates = [cell.tflop_s for cell in cells]
    axes.plot(x, rates, color=OURS, marker="o", markersize=4.5, linewidth=1.3, label="w4afp8")
    for at, rate, cell in zip(x, rates, cells):
        if cell.tokens in LABELLED or len(cells) <= FEW:
            place = {"xytext": (7, -11), "textcoords": "offset points", "fontsize": 9, "color": INK}
            axes.annotate(f"M={cell.tokens}", (at, rate), **place)


def _dress(axes: Any, shape: str) -> None:
    axes.set(xscale="log", yscale="log", facecolor="white")
    axes.set_title(shape, color=INK, fontsize=12, loc="left")
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
