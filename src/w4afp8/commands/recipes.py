"""`w4afp8 recipes`: what comes with the tool."""

from __future__ import annotations

import click
from rich.table import Table

from w4afp8 import recipes
from w4afp8.commands._shared import JSON_FLAG, OUT, print_json


@click.group("recipes")
def recipes_group() -> None:
    """The recipes that come with the tool."""


@recipes_group.command("list")
@JSON_FLAG
def recipes_list(as_json: bool) -> None:
    """Name and purpose of each recipe."""
    from w4afp8.recipes._load import load

    found = {name: load(name).about for name in recipes.names()}
    if as_json:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, about in found.items():
        table.add_row(f"{name} (default)" if name == recipes.DEFAULT else name, about)
    OUT.print(table)


@recipes_group.command("show")
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the recipe; may be repeated.")
@JSON_FLAG
def recipes_show(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """A recipe with every default written out."""
    from w4afp8.recipes._load import load, render

    chosen = load(name, settings)  # a mistake is said before torch is imported
    from w4afp8 import quantize as methods

    recipe, _ = methods.resolve(chosen)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        click.echo(render(recipe), nl=False)


COMMAND = recipes_group
