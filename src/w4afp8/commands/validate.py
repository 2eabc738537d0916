"""`w4afp8 validate`: prove a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, MODEL_HELP, OUT, print_json
from w4afp8.errors import ValidationError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", help="The source: " + MODEL_HELP)
@click.option("--sample", type=click.IntRange(1), help="Compare only so many experts per layer.")
@click.option("--report/--no-report", default=True, help="Write report.json and report.html into FOLDER/w4afp8.")
@JSON_FLAG
def validate(folder: Path, against: str | None, sample: int | None, report: bool, as_json: bool) -> None:
    """Prove a checkpoint: structure, values, outputs beside the source, and the grouped GEMM itself."""
    from w4afp8 import hub
    from w4afp8 import report as reports
    from w4afp8.checkpoint.atomic import write_json
    from w4afp8.convert import resources
    from w4afp8.record import RECORD_FOLDER
    from w4afp8.terminal.steps import Steps
    from w4afp8.validate import validate as prove

    resources.return_freed_memory()
    source = hub.find_model(against) if against else None
    with Steps(ERR, quiet=as_json) as steps:
        result = prove(folder, source, on_progress=steps, sample=sample)
    paths: tuple[Path, ...] = ()
    if report:
        (folder / RECORD_FOLDER).mkdir(exist_ok=True)
        write_json(folder / RECORD_FOLDER / "validation.json", result.to_json())
        paths = reports.write(folder, validation=result)
    if as_json:
        print_json(result.to_json())
    else:
        reports.render_validation(OUT, result)
        for path in paths:
            OUT.print(f"wrote {path}", markup=False, soft_wrap=True)
    if not result.passed:
        raise ValidationError(f"{folder}: {len(result.problems)} problems; the checkpoint is not what it promises")


COMMAND = validate
