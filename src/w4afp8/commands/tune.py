"""`w4afp8 tune`: the fastest right schedule of each problem, for this GPU."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._measuring import EP, MODEL, SHAPE, TOKENS, TP, kind_argument
from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json


@click.command(short_help="Find the fastest schedules for a model on this GPU.")
@kind_argument
@MODEL
@SHAPE
@TP
@EP
@TOKENS
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="The table; default: where the kernels look, ~/.config/w4afp8/tuned/DEVICE.json.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Forget the rows that the table holds.")
@JSON_FLAG
def tune(
    kind: str,
    model: Path | None,
    shape: tuple[str, ...],
    tp: int,
    ep: int,
    tokens: str | None,
    output: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Try every schedule on the Hopper GPU at hand, each verified before it is timed, and keep the fastest in a table.

    `gemm` times each product alone, `moe` the two of the layer inside it, then the layer in one launch.  A table that
    is there keeps its other rows.
    """
    from w4afp8.kernels import settings
    from w4afp8.measure import shapes, stand, table
    from w4afp8.measure import tune as tuning
    from w4afp8.measure.race import Found
    from w4afp8.terminal.bench_view import show_found
    from w4afp8.terminal.steps import Steps

    problems = shapes.gather(shape, model, tp, ep, kind == "moe")
    counts = shapes.parse_tokens(tokens) if tokens else shapes.TOKENS
    place = stand.hopper(f"tune {kind}")
    path = output or settings.tuned_table(place.about["device"])
    table.refuse_foreign(path, place.about["device"])
    made_by = f"w4afp8 tune {kind}"
    total = table.write(path, [], place.about, made_by, keep=not fresh)  # also proves that it can be written
    found: list[Found] = []
    with Steps(ERR, quiet=as_json) as steps:
        for one in tuning.search("moe" if kind == "moe" else "gemm", problems, counts, place, steps):
            found.append(one)
            total = table.write(path, [one], place.about, made_by)
    if as_json:
        print_json({**place.about, "table": str(path), "found": [table.found_json(one) for one in found]})
    else:
        show_found(OUT, found)
        OUT.print(f"wrote {path}: {len(found)} problems measured, {total} in all", markup=False, soft_wrap=True)


COMMAND = tune
