"""`w4afp8 eval`: how far the quantized model stands from its source."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, MODEL_HELP, OUT, print_json


@click.command("eval", short_help="Compare a checkpoint's predictions with its source's.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", required=True, help="The source: " + MODEL_HELP)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSONL, text or parquet.")
@click.option("--sequences", type=click.IntRange(1), default=32, show_default=True)
@click.option("--sequence", type=click.IntRange(2), default=512, show_default=True, help="Tokens per sequence.")
@click.option("--activations", type=click.Choice(["token", "static", "none"]), multiple=True, default=["token"],
              show_default=True, help="FP8 rounding of the experts' inputs; may be repeated.")  # fmt: skip
@JSON_FLAG
def evaluate(
    folders: tuple[Path, ...],
    against: str,
    data: Path,
    sequences: int,
    sequence: int,
    activations: tuple[str, ...],
    as_json: bool,
) -> None:
    """Perplexity, KL divergence and top-1 agreement of one or more checkpoints beside their source."""
    from w4afp8 import hub
    from w4afp8 import report as reports
    from w4afp8.checkpoint.atomic import write_json
    from w4afp8.convert import resources
    from w4afp8.evaluate import evaluate_many
    from w4afp8.record import RECORD_FOLDER
    from w4afp8.terminal.steps import Steps

    resources.return_freed_memory()
    source = hub.find_model(against)
    with Steps(ERR, quiet=as_json) as steps:
        targets = [(folder, kind) for folder in folders for kind in activations]
        results = evaluate_many(targets, source, data, sequences=sequences, sequence=sequence, on_progress=steps)
    for folder in folders:
        if (folder / RECORD_FOLDER).is_dir():
            mine = [result.to_json() for (of, _), result in zip(targets, results) if of == folder]
            write_json(folder / RECORD_FOLDER / "evaluation.json", mine)
            reports.write(folder)
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        for result in results:
            reports.render_evaluation(OUT, result)


COMMAND = evaluate
