#!/usr/bin/env python3
"""Times the grouped GEMM on the named shapes against the floor of the machine and, in the same run, a peer.

    python benchmarks/bench_grouped_gemm.py [--shapes R1,EP8,TP8,OSS,DENSE] [--peer humming] [--out FILE.jsonl] ...
    python benchmarks/bench_grouped_gemm.py --sweep [--shapes ...] [-o TABLE.json]

`w4afp8 bench gemm` with every shape, or `w4afp8 tune gemm`; whatever else is given is passed on.  How it is measured
stands in src/w4afp8/measure/.
"""

from __future__ import annotations

import argparse

from w4afp8.cli import main
from w4afp8.measure.shapes import NAMED

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default=",".join(NAMED))
    parser.add_argument("--sweep", action="store_true", help="time every schedule and write the table")
    options, others = parser.parse_known_args()
    shapes = [word for name in options.shapes.split(",") for word in ("--shape", name)]
    main(["tune" if options.sweep else "bench", "gemm", *shapes, *others])
