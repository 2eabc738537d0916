"""A run as a roofline: arithmetic intensity against the rate achieved, under the lines of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from w4afp8.errors import ResourceError
from w4afp8.measure.cells import Cell, Run

# Colours that stay apart in print and for colour-blind eyes (Okabe and Ito), and a marker each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
LABELLED = (1, 64, 512, 4096)  # token counts written beside our points
INK = "#222222"
FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Before anything is measured.  Raises: ResourceError without matplotlib or for a file of another kind."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ResourceError('--plot: matplotlib is not installed; pip install "w4afp8[plot]"') from None
    if path.suffix not in FORMATS:
        raise ResourceError(f"--plot {path}: expected a file name that ends in {', '.join(FORMATS)}")


def draw(run: Run, path: Path) -> None:
    """Write the plot; its format is the file name's.  Intensity counts the bytes of the floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    _roof(axes, run)
    shapes = list(dict.fromkeys(cell.shape for cell in run.cells))
    for shape, colour, marker in zip(shapes, cycle(COLOURS), cycle(MARKERS)):
        _points(axes, [cell for cell in run.cells if cell.shape == shape], shape, colour, marker)
    axes.set(xscale="log", yscale="log")
    kind = "fused MoE layer" if run.cells[0].kind == "moe" else "GEMM"
    where = ", ".join(run.about[key] for key in ("device", "date") if key in run.about)
    axes.set_title(f"W4AFP8 {kind}: rate achieved under the roofline ({where})", color=INK, fontsize=13)
    axes.set_xlabel("arithmetic intensity: flop per byte that must be moved", color=INK, fontsize=12)
    axes.set_ylabel("TFLOP/s", color=INK, fontsize=12)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", fontsize=10, frameon=True, facecolor="white", edgecolor="#CCCCCC")
    figure.savefig(path)


def _roof(axes: Any, run: Run) -> None:
    """The two floors of the machine, and where they meet."""
    memory, compute = run.machine.bytes_us, run.machine.flop_us
    ridge = compute / memory
    intensities = [cell.flops / cell.bytes for cell in run.cells]
    left, right = min(intensities) / 1.6, max(*intensities, ridge) * 1.6
    axes.plot(
        [left, ridge, right], [left * memory / 1e6, compute / 1e6, compute / 1e6], color=INK, linewidth=2,
        label=f"floor: {memory / 1e6:.2f} TB/s read, {compute / 1e6:.0f} TFLOP/s e4m3, this run",
    )  # fmt: skip
    axes.set_xlim(left, right)


def _points(axes: Any, cells: Iterable[Cell], shape: str, colour: str, marker: str) -> None:
    cells = sorted(cells, key=lambda cell: cell.tokens)
    x = [cell.flops / cell.bytes for cell in cells]
    axes.plot(x, [cell.tflop_s for cell in cells], color=colour, marker=marker, markersize=7, linewidth=1.2,
              label=f"{shape}, w4afp8")  # fmt: skip
    beside = [(at, cell.flops / cell.peer.us / 1e6, cell.peer.name) for at, cell in zip(x, cells) if cell.peer]
    if beside:
        axes.plot([b[0] for b in beside], [b[1] for b in beside], color=colour, marker=marker, markersize=7,
                  markerfacecolor="white", linewidth=1, linestyle=":", label=f"{shape}, {beside[0][2]}")  # fmt: skip
    for at, cell in zip(x, cells):
        if cell.tokens in LABELLED or len(cells) <= 3:
            axes.annotate(f"M={cell.tokens}", (at, cell.tflop_s), xytext=(5, -12), textcoords="offset points",
                          fontsize=9, color=colour)  # fmt: skip
