"""`w4afp8 convert --layout` beside a plain copy of the same bytes, the way back, and `validate`: seconds, peak memory.

    python benchmarks/bench_layouts.py --gb 2 --work /somewhere/with/room

The checkpoint is bench_convert's: random, of DeepSeek-V3's expert shape [2048, 7168], as sglang_w4afp8.  Each command
is timed from its start to a sync.  One JSON line per layout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from bench_convert import timed, write_source
from harness import record

LAYOUTS = ("sm90", "sglang-cutlass", "flashinfer-sm90-v2", "machete", "machete-lyra", "marlin", "marlin-fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--work", type=Path, help="a folder with room for three times --gb")
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS)
    parser.add_argument("--moves-only", action="store_true", help="no `validate`, whose products take longer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        source, out, spare, copied = (Path(work) / name for name in ("source", "out", "spare", "copy"))
        write_source(source, arguments.gb)
        size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
        timed(["cp", "-r", str(source), str(copied)], copied)  # warms the page cache
        tool = [sys.executable, "-m", "w4afp8.cli"]
        for name in arguments.layouts:
            copy, _ = timed(["cp", "-r", str(source), str(copied)], copied)
            lay_out = ["convert", str(source), "--layout", name, "-o", str(out), "-q"]
            found = {"into": timed([*tool, *lay_out], out, keep=True)}
            if not arguments.moves_only:
                found["validate"] = timed([*tool, "validate", str(out), "--no-report", "--json"], out, keep=True)
            restore = ["convert", str(out), "--layout", "canonical", "-o", str(spare), "-q"]
            found["back"] = timed([*tool, *restore], spare)
            shutil.rmtree(out)
            seconds = {"copy": copy, **{step: took for step, (took, _) in found.items()}}
            peaks, into = {step: peak for step, (_, peak) in found.items()}, seconds["into"]
            record("layouts", {
                "layout": name, "bytes": size, "seconds": {key: round(value, 2) for key, value in seconds.items()},
                "share_of_copy": round(copy / into, 3), "gb_per_second": round(size / into / 1e9, 3),
                "peak_rss_bytes": peaks, "load_1m": round(os.getloadavg()[0], 2),
            })  # fmt: skip


if __name__ == "__main__":
    main()
