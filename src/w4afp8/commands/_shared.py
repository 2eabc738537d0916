"""What commands share: the two consoles, common options, JSON output."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)

JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
MODEL_HELP = "A checkpoint directory, or a Hub id (org/name)."


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(content, indent=2))
