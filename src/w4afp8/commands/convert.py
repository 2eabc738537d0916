"""`w4afp8 convert`: the same numbers in another format."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json


@click.command()
@click.argument("source")
@click.option("--format", "format_name", required=True, help="A checkpoint format: docs/format-matrix.md.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), help="Default: ./SOURCE-FORMAT.")
@click.option("--shard-gb", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True)
@click.option("--jobs", type=int, help="Experts converted at a time.  Default: one more than cores, at most 8.")
@click.option("--resume", type=click.Choice(["auto", "required", "never"]), default="auto", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@JSON_FLAG
def convert(
    source: str,
    format_name: str,
    output_dir: Path | None,
    shard_gb: float,
    jobs: int | None,
    resume: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Move a 4-bit checkpoint to another format, every number kept and read back, or say why it cannot be."""
    from w4afp8 import conversion, hub
    from w4afp8.convert import resources
    from w4afp8.recipes._recipe import Resume
    from w4afp8.terminal.interrupts import StopRequests
    from w4afp8.terminal.progress import RunProgress

    resources.keep_freed_memory()
    folder = hub.find_model(source)
    out = output_dir or Path(f"{folder.resolve().name}-{format_name}")
    prepared = conversion.prepare(folder, format_name, out, shard_gb, jobs)
    translation = prepared.translation
    text = not (quiet or as_json)
    if text:
        OUT.print(f"{folder} ({translation.source.name}) -> {out} ({format_name})", markup=False, soft_wrap=True)
    units = len(translation.plan.units)
    with StopRequests(ERR) as stop, RunProgress(OUT, units, quiet=not text) as progress:
        found = conversion.run(prepared, resume=Resume(resume), listener=progress, stop=lambda: stop.asked)
    if as_json:
        print_json({"output": str(out), "bytes": translation.plan.total_bytes,
                    **{key: found[key] for key in ("from", "to", "matrices", "proof")}})  # fmt: skip
    elif text:
        OUT.print(f"proof      {found['proof']}", markup=False, soft_wrap=True)


COMMAND = convert
