"""`w4afp8 quantize`: the main job."""

from __future__ import annotations

import json
from pathlib import Path

import click

from w4afp8 import recipes
from w4afp8.commands._shared import ERR, JSON_FLAG, MODEL_HELP, OUT, print_json


@click.command()
@click.option("--model", "--model-id", required=True, help=MODEL_HELP + " DeepSeek-R1 means deepseek-ai/DeepSeek-R1.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--recipe", default=recipes.DEFAULT, show_default=True, help="A recipe's name or a YAML file.")
@click.option("--scheme", type=click.Choice(["W4AFP8", "MXFP4"]), help="What the experts become; default: W4AFP8.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the recipe; may be repeated.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), help="Default: ./MODEL-SCHEME.")
@click.option("--data", multiple=True, help="Calibration text: JSONL, text, parquet, a folder, or a Hub data set.")
@click.option("--mtp", type=click.Choice(["auto", "quantize", "native", "drop"]), help="Multi-token-prediction layers.")
@click.option("--device", help="Where arithmetic runs: cpu, cuda, cuda:1.")
@click.option("--resume", type=click.Choice(["auto", "required", "never"]), default="auto", show_default=True)
@click.option("--allow-cold-experts", is_flag=True, help="Go on although some experts saw too few tokens.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop; nothing is written.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@JSON_FLAG
def quantize(
    model: str, revision: str | None, recipe: str, scheme: str | None, settings: tuple[str, ...],
    output_dir: Path | None, data: tuple[str, ...], mtp: str | None, device: str | None, resume: str,
    allow_cold_experts: bool, dry_run: bool, quiet: bool, as_json: bool,
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
    flags = [
        (f"scheme={scheme}", scheme),
        (f"mtp={mtp}", mtp),
        (f"compute.device={device}", device),
        ("coverage.allow_cold=true", allow_cold_experts),
        (f"calibration.data={json.dumps(data)}", data),
    ]
    chosen = load(recipe, [*settings, *(text for text, given in flags if given)])
    folder = hub.find_model(model, revision)
    out = output_dir or Path(f"{Path(model).name or folder.name}-{chosen.scheme}")
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
        OUT.print(f"{folder} -> {out}   recipe {recipe}, method {run.recipe.method.name}", markup=False, soft_wrap=True)
        show_plan(OUT, run.plan, run.needs, run.tokens_BS.numel())
        OUT.print()
    with StopRequests(ERR) as stop, RunProgress(OUT, len(run.plan.units), quiet=not text) as progress:
        record = pipeline.run(run, resume=Resume(resume), listener=progress, stop=lambda: stop.asked)
    if as_json:
        print_json({"output": str(out), "bits_per_weight": record["bits_per_weight"], "bytes": run.plan.total_bytes,
                    "layers": [{k: e[k] for k in ("layer", "error")} for e in record["layers"]]})  # fmt: skip
    elif text:
        OUT.print(f"\nnext: w4afp8 validate {out} --against {folder}", markup=False, soft_wrap=True)


COMMAND = quantize
