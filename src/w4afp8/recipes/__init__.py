"""What we want: strict, versioned YAML.  A file here is a recipe, its name is the recipe's name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
DEFAULT = "balanced"


def names() -> tuple[str, ...]:
    """The recipes that come with the tool."""
    return tuple(sorted(path.stem for path in HERE.glob("*.yaml")))
