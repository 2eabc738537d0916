"""Programs that follow device code on a CPU: host/NAME.cpp, compiled against the kernels' own headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from w4afp8.kernels import build

HOST = Path(__file__).parent / "host"


def compiled(name: str, into: Path) -> str:
    """The program's path; skips where there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-std=c++20", "-O1", "-pthread", f"-I{HOST}", f"-I{build.CSRC}", str(HOST / f"{name}.cpp")]
    subprocess.run([*command, "-o", str(into / name)], check=True)
    return str(into / name)
