"""`w4afp8 doctor`: what this machine lacks."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json
from w4afp8.errors import ResourceError

STYLES = {"ok": "green", "lacks": "yellow", "broken": "bold red"}


@click.command(short_help="Say what this machine lacks, and how to get it.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), default=Path(), help="Where an output would go.")
@click.option(
    "--build", "compiles", is_flag=True, help="First compile the sm_90a kernels into the cache; needs no GPU."
)
@JSON_FLAG
def doctor(output_dir: Path, compiles: bool, as_json: bool) -> None:
    """Say what this machine has and lacks, what each missing piece costs, and how to get it.  Asks no network."""
    from w4afp8.doctor import Health, examine
    from w4afp8.kernels import build

    if compiles:
        ERR.print(build.ensure(), markup=False, soft_wrap=True)
    found = examine(output_dir)
    if as_json:
        print_json([finding.to_json() for finding in found])
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in found:
            about = Text(finding.found)
            if finding.cost:
                about.append(f"\n{finding.cost}\nget it: {finding.get}", style="dim")
            table.add_row(finding.name, Text(finding.health, style=STYLES[finding.health]), about)
        OUT.print(table)
    broken = [finding.name for finding in found if finding.health is Health.BROKEN]
    if broken:
        raise ResourceError(f"{', '.join(broken)}: the work does not go without; see above how to get it")


COMMAND = doctor
