"""`w4afp8 inspect`: what a checkpoint holds."""

from __future__ import annotations

import click

from w4afp8.commands._shared import JSON_FLAG, OUT, print_json


@click.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@JSON_FLAG
def inspect(model: str, revision: str | None, tensors: bool, as_json: bool) -> None:
    """Say what a checkpoint holds, from its headers alone."""
    from w4afp8 import hub
    from w4afp8.terminal.inspect_view import inspect_json, show_inspection

    found = inspect_json(hub.find_model(model, revision), tensors)
    if as_json:
        print_json(found)
    else:
        show_inspection(OUT, found)


COMMAND = inspect
