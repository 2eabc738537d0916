"""`w4afp8 convert`: the same numbers in another format, or in the order in which a kernel reads them."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json
from w4afp8.errors import RecipeError

SHARD_GB = 5.0


@click.command(short_help="Move a checkpoint to another format or layout.")
@click.argument("source", default=".")
@click.option("--format", "format_name", help="A checkpoint format: docs/format-matrix.md.")
@click.option("--layout", "layout_name", help="A runtime layout: docs/layouts.md; canonical is the way back.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Ranks that share every expert.")
@click.option("--ep", type=click.IntRange(1), default=1, show_default=True, help="Groups of ranks that share out the "
              "experts.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True,
              help="How far a searched scale (vllm-cutlass) may stand from the true one, relative; the refusal says "
              "what would be enough.")  # fmt: skip
@click.option("-o", "--output-dir", type=click.Path(path_type=Path),
              help="Default: SOURCE-NAME, beside the source if that is the working directory, else here.")  # fmt: skip
@click.option("--shard-gb", type=click.FloatRange(0, min_open=True), help=f"Default: {SHARD_GB:g}.")
@click.option("--jobs", type=int, help="Experts at a time.  Default: one more than cores, at most 8.")
@click.option("--resume", type=click.Choice(["auto", "required", "never"]), default="auto", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@JSON_FLAG
def convert(
    source: str, format_name: str | None, layout_name: str | None, tp: int, ep: int, tolerance: float,
    output_dir: Path | None, shard_gb: float | None, jobs: int | None, resume: str, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Move a 4-bit checkpoint to another format or layout, every number read back, or say why it cannot be.

    SOURCE is a checkpoint directory or a Hub id, the working directory when it is left out.
    """
    from w4afp8 import formats, hub, layouts
    from w4afp8.commands import _convert
    from w4afp8.convert import resources
    from w4afp8.recipes._recipe import Resume

    if (format_name is None) == (layout_name is None):
        raise RecipeError(
            f"give either --format ({', '.join(formats.written())})\nor --layout "
            f"({', '.join((*layouts.names(), layouts.CANONICAL))}): what is the checkpoint to become?"
        )
    if (tp, ep, tolerance) != (1, 1, 0.0) and layout_name in (None, layouts.CANONICAL):
        raise RecipeError("--tp, --ep and --tolerance belong to a --layout; its way back takes every rank there is")
    if shard_gb is not None and layout_name == layouts.CANONICAL:
        raise RecipeError("--shard-gb: the way back writes the shards that there were; leave it out")
    size = SHARD_GB if shard_gb is None else shard_gb
    resources.keep_freed_memory()
    folder = hub.find_model(source)
    out = output_dir or default_output(folder, format_name or layout_name or "")
    text = not (quiet or as_json)
    screen = _convert.Screen(OUT, ERR, folder, out, text)
    mode = Resume(resume)
    if format_name is not None:
        found = _convert.to_format(screen, format_name, size, jobs, mode)
    elif layout_name == layouts.CANONICAL:
        found = _convert.to_canonical(screen, jobs, mode)
    else:
        found = _convert.to_layout(screen, layout_name or "", tp, ep, tolerance, size, jobs, mode)
    if as_json:
        print_json(found)
    elif text:
        for note in found.get("notes", ()):
            OUT.print(f"padded     {note}", markup=False, soft_wrap=True)
        OUT.print(f"proof      {found['proof']}", markup=False, soft_wrap=True)
        OUT.print(f"\nnext: w4afp8 validate {out}", markup=False, soft_wrap=True)


def default_output(folder: Path, name: str) -> Path:
    """NAME-WHAT in the working directory; beside it where that is the source itself."""
    whole = folder.resolve()
    file = f"{whole.name}-{name}"
    return whole.parent / file if whole == Path.cwd() else Path(file)


COMMAND = convert
