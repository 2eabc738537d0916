"""A quantized directory to break, one per test; what is converted: published by others, or quantized and proven."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conversions import Ours, Published, Toys, prove
from rtn_writer import write_rtn

from w4afp8.synthetic import write_checkpoint


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


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, toy_config: dict[str, Any]) -> Published:
    """A source that no run of ours made."""
    home = tmp_path_factory.mktemp("published")
    small = toy_config | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    made: dict[str, Path] = {}

    def make(config: dict[str, Any], style: str) -> Path:
        name = f"{config.get('model_type', 'toy')}-{style}"
        if name not in made:
            made[name] = home / name
            write_checkpoint(made[name], config or small, dtype=style, shard_gb=0.0003)
        return made[name]

    return make


@pytest.fixture
def ours(quantized_toys: Toys, tmp_path: Path) -> Ours:
    """A copy of what was quantized, proven beside its source."""

    def make(name: str, proven: bool = True) -> Path:
        source, made = quantized_toys(name)
        out = Path(shutil.copytree(made, tmp_path / f"ours-{name}"))
        if proven:
            assert prove(out, source).proven
        return out

    return make
