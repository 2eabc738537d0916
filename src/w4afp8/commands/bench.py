"""`w4afp8 bench`: the kernels beside the floor of the machine and a peer."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._measuring import EP, MODEL, SHAPE, TOKENS, TP, kind_argument
from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json
from w4afp8.errors import RecipeError


@click.command(short_help="Time the kernels beside the floor of the GPU and a peer.")
@kind_argument
@MODEL
@SHAPE
@TP
@EP
@TOKENS
@click.option("--peer", help="Measure this one beside it, in the same run: humming.")
@click.option("--way", default="chosen", show_default=True,
              help="How `moe` runs: chosen, several (launches), or a kernel of one launch (n8f, n8, n16).")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Append JSON lines, one as each cell is measured.")
@click.option(
    "--from", "recorded", type=click.Path(path_type=Path), help="Show a run that --out wrote; measures nothing."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write a roofline plot: .png, .svg or .pdf.")
@JSON_FLAG
def bench(
    kind: str,
    model: Path | None,
    shape: tuple[str, ...],
    tp: int,
    ep: int,
    tokens: str | None,
    peer: str | None,
    way: str,
    out: Path | None,
    recorded: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time the kernels on the Hopper GPU at hand: `gemm`, each product alone, or `moe`, the whole fused layer.

    Medians of replayed CUDA graphs on random data larger than L2; the floor is measured in the same run.
    """
    from w4afp8.measure import bench as benches
    from w4afp8.measure import cells, peers, roofline, shapes, stand
    from w4afp8.terminal.bench_view import show_run
    from w4afp8.terminal.steps import Steps

    which: cells.Kind = "moe" if kind == "moe" else "gemm"
    if kind == "gemm" and way != stand.CHOSEN:
        raise RecipeError(f"--way {way}: bench gemm runs no layer; leave it out")
    if plot:
        roofline.check(plot)
    if out and not out.absolute().parent.is_dir():
        raise RecipeError(f"--out {out}: there is no folder {out.parent}")
    if recorded:
        if model or shape or peer or out or tokens or (tp, ep, way) != (1, 1, stand.CHOSEN):
            raise RecipeError(
                "--from shows what was measured; it takes no --model, --shape, "
                "--tp, --ep, --tokens, --peer, --way or --out"
            )
        run = cells.read_run(recorded, which)
    else:
        problems = shapes.gather(shape, model, tp, ep, which == "moe")
        counts = shapes.parse_tokens(tokens) if tokens else shapes.TOKENS
        place = stand.hopper(f"bench {kind}", way)
        beside = peers.get(peer) if peer else None
        with Steps(ERR, quiet=as_json) as steps:
            machine = place.ceilings()
            if out:
                cells.append(out, cells.machine_line(machine, place.about))
            found = []
            for cell in benches.run(which, problems, counts, place, machine, beside, steps):
                found.append(cell)
                if out:
                    cells.append(out, cells.cell_line(cell, place.about))
        run = cells.Run(place.about, machine, tuple(found))
        if not found:
            raise RecipeError(f"bench {kind}: none of {', '.join(p.name for p in problems)} has such a cell")
    if as_json:
        print_json(run.to_json())
    else:
        show_run(OUT, run)
    if plot:
        roofline.draw(run, plot)
        ERR.print(f"wrote {plot}", markup=False, soft_wrap=True)


COMMAND = bench
