"""`w4afp8 validate`: prove a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json
from w4afp8.errors import RecipeError, ValidationError


@click.command(short_help="Prove a checkpoint, beside its source.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", multiple=True, help="What it was made from: a directory or a Hub id (org/name).  Of what "
              "`convert` wrote it may be left out.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Structure, values and 4 experts per layer: a look, not a proof.")
@click.option("--sample", type=click.IntRange(1), help="Compare only so many experts per layer: a look, not a proof.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True,
              help="What multiplies the packed bytes: the sm_90a kernels on a Hopper GPU, or plain torch. auto: the "
              "kernels where such a GPU and their library are.")  # fmt: skip
@click.option("--report/--no-report", default=True,
              help="Write validation.json, report.json and report.html into FOLDER/w4afp8.")  # fmt: skip
@JSON_FLAG
def validate(
    folder: Path,
    against: tuple[str, ...],
    quick: bool,
    sample: int | None,
    device: str,
    report: bool,
    as_json: bool,
) -> None:
    """Prove a checkpoint that `quantize` or `convert` wrote; which proof it needs is found by itself.

    Quantized: structure, values, outputs beside the source, the grouped GEMM and the fused layer.  Converted: every
    number is its source's.  A layout: the checkpoint comes out of it byte for byte.

    The verdict is kept with the digest of every file and tensor; `push` asks for it.
    """
    from w4afp8 import hub
    from w4afp8 import report as reports
    from w4afp8.convert import resources
    from w4afp8.terminal.steps import Steps
    from w4afp8.validate import gate
    from w4afp8.validate import validate as prove
    from w4afp8.validate.account import is_source
    from w4afp8.validate.converted import needs_source
    from w4afp8.validate.origin import origin_of
    from w4afp8.validate.request import (
        check_against,
        check_promise,
        check_writable,
        converted_from,
        is_another_source,
    )
    from w4afp8.validate.route import Kind, kind_of
    from w4afp8.validate.run import check_request
    from w4afp8.validate.seal import take_seal

    if quick and sample:
        raise RecipeError("--quick and --sample: both say how many experts are compared; give one")
    if len(against) > 1:
        raise RecipeError(
            f"--against is given {len(against)} times ({', '.join(against)}): one source decides, give one"
        )
    sample = gate.QUICK_SAMPLE if quick else sample
    check_promise(folder)
    if report:
        check_writable(folder)
    source = hub.find_model(against[0]) if against else None
    if source is not None:
        check_against(folder, source)
    kind = check_request(folder, source, sample, device)  # before every byte is read for its digest
    made_from = converted_from(folder)
    if source is None and kind is Kind.CONVERTED and needs_source(folder):
        near = hub.source_at_hand(folder)
        source = near if near and is_source(near, folder) else None
    elif source is None and kind is Kind.QUANTIZED and made_from and not sample and device != "cuda":
        near = hub.source_at_hand(folder)  # quantized, then converted: without a proof of it the source itself decides
        source = near if near and is_source(near, folder) and kind_of(folder, near) is Kind.CONVERTED else None
    resources.return_freed_memory()
    kept = True
    with Steps(ERR, quiet=as_json) as steps:
        seal = take_seal(folder, steps) if report else None
        result = prove(folder, source, on_progress=steps, sample=sample, device=device)
    paths: tuple[Path, ...] = ()
    blameless = is_another_source(result)
    if seal is not None and not blameless:
        kept = gate.write_verdict(folder, result, seal, origin_of(source) if source else None)
        paths = reports.write(folder, validation=result if kept else None)
    if as_json:
        print_json(result.to_json())
    else:
        reports.render_validation(OUT, result)
        if not kept:
            OUT.print("the proof of these very bytes is kept: a sample does not replace it")
        for path in paths:
            OUT.print(f"wrote {path}", markup=False, soft_wrap=True)
        if result.proven and kept and report:
            OUT.print(f"next: w4afp8 push {folder} --repo ORG/NAME", markup=False, soft_wrap=True)
        elif result.passed and not result.proven:
            what = "a look, not a proof" if result.sample else "not a proof yet, see what was not tested"
            give = made_from if made_from and source is None else "SOURCE"
            OUT.print(f"{what}; `push` asks for: w4afp8 validate {folder} --against {give}",
                      markup=False, soft_wrap=True)  # fmt: skip
    if blameless:
        raise ValidationError(
            f"{folder}: --against is another directory than the one that was converted, so nothing was learned and no "
            "verdict was written; give the one that was converted"
        )
    if not result.passed:
        count = sum(len(check.problems) + check.more for check in result.checks)
        problems = f"{count:,} problem{'s' if count != 1 else ''}"
        raise ValidationError(f"{folder}: {problems}; the checkpoint is not what it promises")


COMMAND = validate
