#!/usr/bin/env python3
"""Times the fused MoE layer on the named shapes against the floor, and beside what peers' whole layers took elsewhere.

    python benchmarks/bench_kernel_layer.py [--shapes R1,EP8,TP8,OSS] [--tokens 1,8,...] [--peer humming] [--out FILE]
                                            [--ways chosen,several,n8]

`w4afp8 bench moe`, then the ratios to results/kernels-peers-recorded.json, recorded on an H200 by the same method.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from w4afp8.cli import cli, code_of
from w4afp8.measure import cells
from w4afp8.measure.shapes import NAMED

RECORDED = Path(__file__).parent / "results" / "kernels-peers-recorded.json"
LAYERS = [name for name, shape in NAMED.items() if shape.layer]


def beside_recorded(run: cells.Run) -> None:
    """A line per cell that a peer was recorded at."""
    recorded = json.loads(RECORDED.read_text())
    print(f"recorded: {recorded['device']}, {recorded['date']}; here: {run.about['device']}")
    for cell in run.cells:
        for peer in ("humming", "sglang"):
            theirs = recorded[f"{peer}_us"].get(cell.shape, {}).get(str(cell.tokens))
            if theirs:
                print(f"{cell.shape} M={cell.tokens}: {peer} {theirs} us, ratio {theirs / cell.us:.2f}")


def main() -> None:
    """Measure, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default=",".join(LAYERS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ways", default="chosen", help="how the layer is run; each is a run of its own")
    options, others = parser.parse_known_args()
    shapes = [word for name in options.shapes.split(",") for word in ("--shape", name)]
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch) / "layers.jsonl"
        for way in options.ways.split(","):
            words = ["bench", "moe", *shapes, "--way", way, "--out", str(out), *others]
            code = code_of(partial(cli.main, args=words, standalone_mode=False))
            if code:
                raise SystemExit(code)
            beside_recorded(cells.read_run(out, "moe"))


if __name__ == "__main__":
    main()
