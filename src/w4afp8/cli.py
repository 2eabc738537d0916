"""The command line: parse, call, print.  What a command does stands in the package it calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from w4afp8 import __version__, recipes
from w4afp8.errors import Stopped, ValidationError, W4AFP8Error

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
INTERRUPTED = 130

JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
MODEL_HELP = "A checkpoint directory, or a Hub id (org/name)."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="w4afp8")
def cli() -> None:
    """Turn a DeepSeek-class FP8 checkpoint into a 4-bit checkpoint for Hopper GPUs, and prove it."""


@cli.command()
@click.option("--model", "--model-id", required=True, help=MODEL_HELP + " DeepSeek-R1 means deepseek-ai/DeepSeek-R1.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--recipe", default=recipes.DEFAULT, show_default=True, help="A recipe's name or a YAML file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the recipe; may be repeated.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), help="Default: ./MODEL-W4AFP8.")
@click.option("--data", multiple=True, help="Calibration text: JSONL, text, parquet, a folder, or a Hub data set.")
@click.option("--mtp", type=click.Choice(["auto", "quantize", "native", "drop"]), help="Multi-token-prediction layers.")
@click.option("--device", help="Where arithmetic runs: cpu, cuda, cuda:1.")
@click.option("--resume", type=click.Choice(["auto", "required", "never"]), default="auto", show_default=True)
@click.option("--allow-cold-experts", is_flag=True, help="Go on although some experts saw too few tokens.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop; nothing is written.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@JSON_FLAG
def quantize(
    model: str, revision: str | None, recipe: str, settings: tuple[str, ...], output_dir: Path | None,
    data: tuple[str, ...], mtp: str | None, device: str | None, resume: str, allow_cold_experts: bool,
    dry_run: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize a checkpoint's routed experts to 4 bits.  An interrupted run goes on when run again."""
    from w4afp8 import hub, pipeline
    from w4afp8.convert import resources
    from w4afp8.probe import estimate_seconds
    from w4afp8.recipes._load import load
    from w4afp8.recipes._recipe import Resume
    from w4afp8.terminal.interrupts import StopRequests
    from w4afp8.terminal.plan_view import plan_json, show_plan
    from w4afp8.terminal.progress import RunProgress

    resources.return_freed_memory()
    flags = [(f"mtp={mtp}", mtp), (f"compute.device={device}", device), ("coverage.allow_cold=true", allow_cold_experts),
             (f"calibration.data={json.dumps(data)}", data)]  # fmt: skip
    chosen = load(recipe, [*settings, *(text for text, given in flags if given)])
    folder = hub.find_model(model, revision)
    out = output_dir or Path(f"{Path(model).name or folder.name}-W4AFP8")
    run = pipeline.prepare(folder, chosen, out, hub.find_data)
    text = not (quiet or as_json)
    if dry_run:
        seconds = estimate_seconds(run)
        if as_json:
            print_json(plan_json(run.plan, run.needs, run.tokens_BS.numel(), seconds))
        else:
            show_plan(OUT, run.plan, run.needs, run.tokens_BS.numel(), seconds)
        resources.check(run.needs, out)
        return
    if text:
        OUT.print(f"{folder} -> {out}   recipe {recipe}, method {run.recipe.method.name}", soft_wrap=True)
        show_plan(OUT, run.plan, run.needs, run.tokens_BS.numel())
        OUT.print()
    with StopRequests(ERR) as stop, RunProgress(OUT, len(run.plan.units), quiet=not text) as progress:
        record = pipeline.run(run, resume=Resume(resume), listener=progress, stop=lambda: stop.asked)
    if as_json:
        print_json({"output": str(out), "bits_per_weight": record["bits_per_weight"], "bytes": run.plan.total_bytes,
                    "layers": [{k: e[k] for k in ("layer", "error")} for e in record["layers"]]})  # fmt: skip
    elif text:
        OUT.print(f"\nnext: w4afp8 validate {out} --against {folder}", soft_wrap=True)


@cli.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@JSON_FLAG
def inspect(model: str, revision: str | None, tensors: bool, as_json: bool) -> None:
    """Say what a checkpoint holds, from its headers alone."""
    from w4afp8 import hub
    from w4afp8.terminal.inspect_view import inspect_json, show_inspection

    found = inspect_json(hub.find_model(model, revision), tensors)
    if as_json:
        print_json(found)
    else:
        show_inspection(OUT, found)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", help="The source: " + MODEL_HELP)
@click.option("--sample", type=click.IntRange(1), help="Compare only so many experts per layer.")
@click.option("--report/--no-report", default=True, help="Write report.json and report.html into FOLDER/w4afp8.")
@JSON_FLAG
def validate(folder: Path, against: str | None, sample: int | None, report: bool, as_json: bool) -> None:
    """Prove a checkpoint: structure, values, outputs beside the source, and the grouped GEMM itself."""
    from w4afp8 import hub
    from w4afp8 import report as reports
    from w4afp8.convert import resources
    from w4afp8.terminal.steps import Steps
    from w4afp8.validate import validate as prove

    resources.return_freed_memory()
    source = hub.find_model(against) if against else None
    with Steps(ERR, quiet=as_json) as steps:
        result = prove(folder, source, on_progress=steps, sample=sample)
    paths = reports.write(folder, validation=result) if report else []
    if as_json:
        print_json(result.to_json())
    else:
        reports.render_validation(OUT, result)
        for path in paths:
            OUT.print(f"wrote {path}", soft_wrap=True)
    if not result.passed:
        raise ValidationError(f"{folder}: {len(result.problems)} problems; the checkpoint is not what it promises")


@cli.command("eval")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", required=True, help="The source: " + MODEL_HELP)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSONL, text or parquet.")
@click.option("--sequences", type=click.IntRange(1), default=32, show_default=True)
@click.option("--sequence", type=click.IntRange(2), default=512, show_default=True, help="Tokens per sequence.")
@click.option("--activations", type=click.Choice(["token", "static", "none"]), multiple=True, default=["token"],
              show_default=True, help="FP8 rounding of the experts' inputs; may be repeated.")  # fmt: skip
@JSON_FLAG
def evaluate(
    folders: tuple[Path, ...], against: str, data: Path, sequences: int, sequence: int,
    activations: tuple[str, ...], as_json: bool,
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
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        for result in results:
            reports.render_evaluation(OUT, result)


@cli.group("recipes")
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
    from w4afp8 import quantize as methods
    from w4afp8.recipes._load import load, render

    recipe, _ = methods.resolve(load(name, settings))
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        click.echo(render(recipe), nl=False)


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(content, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code (docs/exit-codes.md)."""
    sys.exit(code_of(lambda: cli.main(args=arguments, prog_name="w4afp8", standalone_mode=False)))


def code_of(command: Callable[[], Any]) -> int:
    """The exit code of a command; what went wrong is said on standard error, without a traceback."""
    try:
        command()
    except Stopped as stopped:
        ERR.print(str(stopped), soft_wrap=True)
        return stopped.exit_code
    except W4AFP8Error as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as usage:
        usage.show()
        return usage.exit_code
    except (KeyboardInterrupt, click.Abort):
        ERR.print("interrupted; finished layers are kept, run the same command to go on")
        return INTERRUPTED
    except OSError as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(f"{error}; what was finished is kept, run the same command to go on", markup=False, soft_wrap=True)
        return 4
    except MemoryError:
        ERR.print("error: out of memory; lower calibration.tokens", style="bold red")
        return 4
    return 0


if __name__ == "__main__":
    main()
