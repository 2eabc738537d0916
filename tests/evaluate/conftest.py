"""The miniature, plainly rounded by the writer of tests/validate, to be evaluated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "validate"))

from rtn_writer import write_rtn


@pytest.fixture(scope="session")
def text() -> Path:
    return Path(__file__).parents[2] / "demo" / "evaluation.jsonl"


@pytest.fixture(scope="session")
def rounded(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    out = tmp_path_factory.mktemp("rounded") / "tiny-W4AFP8"
    write_rtn(miniature, out)
    return out
