"""Runtime layouts: a whole layer's routed experts as an engine holds them in memory.

A public file here is a layout; its name with hyphens is what the command line calls it.  A layout is data: an order of
axes, a table of codes, a rule of scales, which half of w13 comes first.
"""

from __future__ import annotations

import sys
from functools import cache

from w4afp8 import registry
from w4afp8.errors import RecipeError
from w4afp8.layouts._spec import Layout

CANONICAL = "canonical"  # no layout of its own: the way back to the checkpoint that was laid out


@cache
def names() -> tuple[str, ...]:
    """Every layout."""
    return tuple(name.replace("_", "-") for name in registry.names(sys.modules[__name__]))


@cache
def get(name: str) -> Layout:
    """The layout of that name.  Raises: RecipeError with the closest name when there is none."""
    if name not in names():
        close = registry.did_you_mean(name, (*names(), CANONICAL))
        raise RecipeError(f"unknown layout {name!r}{close}; known: {', '.join((*names(), CANONICAL))}")
    found: Layout = registry.load(sys.modules[__name__], name.replace("-", "_"), "layout").LAYOUT
    return found
