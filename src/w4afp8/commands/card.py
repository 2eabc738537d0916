"""`w4afp8 card`: the model card."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import JSON_FLAG, OUT, print_json


@click.command(short_help="Write the model card from what was recorded.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base-model", metavar="ORG/NAME", help="The source on the Hub, when the validation does not say it.")
@JSON_FLAG
def card(folder: Path, base_model: str | None, as_json: bool) -> None:
    """Write FOLDER/README.md, the model card, from what was recorded and measured.

    A card that was copied from the source is kept as w4afp8/source-card.md.
    """
    from w4afp8.card import write

    written = write(folder, base_model=base_model)
    if as_json:
        print_json(written.to_json())
        return
    OUT.print(f"wrote {written.path}", markup=False, soft_wrap=True)
    OUT.print(f"base model {written.base_model or 'unknown: give --base-model ORG/NAME'}", markup=False, soft_wrap=True)
    OUT.print(f"licence {written.licence or 'unknown'}; the directory is {written.state}", markup=False, soft_wrap=True)
    if written.source_card_kept:
        OUT.print("the source's own card is kept as w4afp8/source-card.md")


COMMAND = card
