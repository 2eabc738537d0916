"""Runs of a recipe, and what they left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from w4afp8 import pipeline
from w4afp8.recipes._recipe import Recipe

# AWQ with all that takes time turned off, for tests of what runs and files do: its folds still reach into the norms.
FOLDS_ALONE = {"rounds": 0, "feedback": False, "fold_down": False, "correct_down": False}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the event log, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.jsonl"
    }


def run(source: Path, recipe: Recipe, out: Path, **more: Any) -> dict[str, Any]:
    return pipeline.run(pipeline.prepare(source, recipe, out), **more)


def read_all(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(folder / file)
    assert found.keys() == index["weight_map"].keys()
    return found
