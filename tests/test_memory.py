"""Memory is one job, not one model; measured in processes of their own.  benchmarks/bench_memory.py measures more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Toy = Callable[..., Path]
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
WIDE = {"hidden_size": 512, "moe_intermediate_size": 512, "intermediate_size": 512, "n_routed_experts": 4}
# Prints the process before the run, its peak in the run, and the peak that the plan promised.
PROGRAM = """
import sys, torch
from pathlib import Path
from w4afp8 import pipeline
from w4afp8.convert import resources
from w4afp8.recipes._load import build

torch.set_num_threads(1)
resources.return_freed_memory()
source, out, method, tokens = sys.argv[1:]
recipe = build({"method": {"name": method}, "calibration": {"tokens": int(tokens), "sequence": 256},
                "coverage": {"min_tokens": 0}}, "x")
run = pipeline.prepare(Path(source), recipe, Path(out))
Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
before = resources.peak_resident_bytes()
pipeline.run(run)
print(before, resources.peak_resident_bytes(), run.needs.peak)
"""


def peak_bytes(source: Path, out: Path, method: str = "rtn", tokens: int = 2048) -> tuple[int, int, int]:
    words = [sys.executable, "-c", PROGRAM, str(source), str(out), method, str(tokens)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, peak, planned = map(int, done.stdout.split())
    return before, peak, planned


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_run_keeps_to_its_plan(toy: Toy, tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = WIDE | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    _, measured, planned = peak_bytes(toy(shard_gb=1.0, **changes), tmp_path / "out", method)
    assert 0.85 * planned <= measured <= 1.15 * planned


def test_eight_times_as_many_layers_need_no_more(toy: Toy, tmp_path: Path) -> None:
    measured = []
    for layers in (2, 16):
        changes: dict[str, Any] = WIDE | {"num_hidden_layers": layers, "num_nextn_predict_layers": 0}
        source = toy(f"deep-{layers}", shard_gb=1.0, **changes)
        before, peak, _ = peak_bytes(source, tmp_path / f"out-{layers}", tokens=1024)
        measured.append(peak - before)
    assert measured[0] > 10e6, "too small a model to measure"
    # A layer that kept its states (2 MB) or its experts (3 MB) would have grown by 14 times that; 7 MB were seen.
    assert measured[1] <= 1.05 * measured[0] + 12e6, measured


VALIDATION = """
import sys, torch
from pathlib import Path
from w4afp8 import conversion
from w4afp8.convert import resources
from w4afp8.validate import validate

torch.set_num_threads(1)
resources.return_freed_memory()
source, out = map(Path, sys.argv[1:])
conversion.run(conversion.prepare(source, "deepseek_fp8", out, 1.0, 1))
validate(out, source)  # what the first use of anything takes
Path("/proc/self/clear_refs").write_text("5")
before = resources.peak_resident_bytes()
assert validate(out, source).proven
print(before, resources.peak_resident_bytes())
"""


def test_a_conversion_of_four_times_as_many_experts_is_validated_in_as_little(toy: Toy, tmp_path: Path) -> None:
    measured = []
    for experts in (4, 16):
        changes: dict[str, Any] = WIDE | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
        changes |= {"n_routed_experts": experts, "moe_intermediate_size": 1024, "hidden_size": 1024}
        source = toy(f"wide-{experts}", dtype="deepseek_mxfp4", shard_gb=1.0, **changes)
        done = subprocess.run(
            [sys.executable, "-c", VALIDATION, str(source), str(tmp_path / f"out-{experts}")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        before, peak = map(int, done.stdout.split())
        measured.append(peak - before)
    assert measured[0] > 5e6, "too small a matrix to measure"
    assert measured[1] <= 1.1 * measured[0] + 4e6, measured
