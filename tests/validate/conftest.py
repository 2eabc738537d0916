"""A quantized directory to break, one per test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rtn_writer import write_rtn


@pytest.fixture(scope="session")
def quantized(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, plainly rounded by the tests' own writer; read only."""
    out = tmp_path_factory.mktemp("rtn") / "tiny-W4AFP8"
    write_rtn(miniature, out)
    return out


@pytest.fixture
def copy(quantized: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(quantized, tmp_path / "copy"))
