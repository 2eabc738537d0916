"""benchmarks/kernel_power.py: power and clock as nvidia-smi says them, or a word that it says nothing."""

import importlib
from pathlib import Path
from types import ModuleType

import psutil
import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernel_power")


def test_lines_that_know_nothing_are_left_out(script: ModuleType) -> None:
    printed = "694.12, 1980\n[N/A], 1980\n\n701.5, 1410\n70"
    assert script.samples(printed) == [(694.12, 1980.0), (701.5, 1410.0)]


def test_what_the_program_prints_is_there_when_the_block_ends(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SAMPLER", ("printf", "700.0, 1500\\n650.0, 1400\\n"))
    with script.sampled() as seen:
        assert seen == []
        psutil.wait_procs(psutil.Process().children(), timeout=30)  # has printed
    assert seen == [(700.0, 1500.0), (650.0, 1400.0)]
