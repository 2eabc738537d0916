"""The commands.  A public file here is a command: it parses, calls and prints; what it does stands in what it calls."""

from __future__ import annotations

import sys

import click

from w4afp8 import registry


def every() -> list[click.Command]:
    """Each file's COMMAND, in the order of their names."""
    here = sys.modules[__name__]
    return [registry.load(here, name, "command").COMMAND for name in registry.names(here)]
