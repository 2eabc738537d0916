"""`w4afp8 inspect`: what a checkpoint holds, and whether it was proven."""

from __future__ import annotations

import click

from w4afp8.commands._shared import JSON_FLAG, OUT, print_json


@click.command(short_help="Say what a checkpoint holds and whether it was proven.")
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@JSON_FLAG
def inspect(model: str, revision: str | None, tensors: bool, as_json: bool) -> None:
    """Say what a checkpoint holds and whether it was proven, from headers, sizes and dates alone."""
    from w4afp8 import hub
    from w4afp8.terminal.gate_view import gate_json, show_gate
    from w4afp8.terminal.inspect_view import inspect_json, show_inspection

    folder = hub.find_model(model, revision)
    found = inspect_json(folder, tensors) | {"gate": gate_json(folder)}
    if as_json:
        print_json(found)
    else:
        show_inspection(OUT, found)
        if found["gate"]:
            show_gate(OUT, found["gate"])


COMMAND = inspect
