"""The one registry: a public file of a package is an entry, its file name is the entry's name.

Used by formats/, families/ and quantize/.  Floor 0: it imports nothing of ours but the errors.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from w4afp8.errors import RecipeError


@cache  # `synthetic` asks once per tensor, and a model has a hundred thousand
def names(package: ModuleType) -> tuple[str, ...]:
    """Every public module of `package`, sorted."""
    return tuple(sorted(m.name for m in iter_modules(package.__path__) if not m.name.startswith("_")))


def load(package: ModuleType, name: str, kind: str) -> ModuleType:
    """The module of that name.  Raises: RecipeError with the closest name when there is none."""
    known = names(package)
    if name not in known:
        raise RecipeError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return import_module(f"{package.__name__}.{name}")


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """', did you mean ...?' or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
