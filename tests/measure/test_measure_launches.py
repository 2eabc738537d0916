"""benchmarks/layer_launches.py: what Nsight Compute prints becomes the launches of each cell."""

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
SUM = "w4afp8::moe::<unnamed>::combine_kernel(w4afp8::moe::Combine, int)"
GEMM = "void w4afp8::grouped_gemm::kernel<w4afp8::grouped_gemm::Config<w4afp8::grouped_gemm::T8>>(w4afp8::Arguments)"
PRINTED = f"""\
==PROF== Connected to process 1, "python"
"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"
"","","byte","byte","ns"
"0","R1:8/{SUM}","1,000","500","6,000"
"1","R1:8/{GEMM}","4,000","100","90,000"
"2","R1:8/{SUM}","3,000","500","8,000"
"3","R1:8/{GEMM}","4,000","300","110,000"
"""


def test_the_draws_of_a_cell_are_averaged_launch_by_launch(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("layer_launches").parse(PRINTED.splitlines())
    assert found == {
        "R1:8": [
            {"launch": "combine", "us": 7.0, "bytes_read": 2000.0, "bytes_written": 500.0},
            {"launch": "grouped_gemm", "us": 100.0, "bytes_read": 4000.0, "bytes_written": 200.0},
        ]
    }
