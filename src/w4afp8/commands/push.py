"""`w4afp8 push`: publish a proven directory."""

from __future__ import annotations

from pathlib import Path

import click

from w4afp8.commands._shared import ERR, JSON_FLAG, OUT, print_json


@click.command(short_help="Publish a proven checkpoint to the Hub.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repo", required=True, metavar="ORG/NAME", help="The model repository on the Hub.")
@click.option("--private/--public", "private", default=None, help="Required when the repository is to be created.")
@click.option("--revision", help="A branch, created when there is none, or refs/pr/N.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to main.")
@click.option("--base-model", metavar="ORG/NAME", help="The source on the Hub, for the card.")
@click.option("--force", metavar="REASON", help="Publish although it is not proven; the card states the reason.")
@click.option("--dry-run", is_flag=True, help="Check and list, offline; nothing is written or sent.")
@JSON_FLAG
def push(
    folder: Path, repo: str, private: bool | None, revision: str | None, create_pr: bool, base_model: str | None,
    force: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Publish a proven checkpoint: card and side files, weights, then index and config; compared afterwards.

    Run it again after any stop: finished files are not sent again.  The login is huggingface_hub's own.
    """
    from w4afp8.convert.resources import human
    from w4afp8.hub.push import Order
    from w4afp8.hub.push import push as publish
    from w4afp8.hub.remote import quiet
    from w4afp8.hub.shipment import Phase
    from w4afp8.terminal.steps import Steps

    if as_json or not ERR.is_terminal:
        quiet()
    order = Order(repo, private, revision, create_pr, force, base_model)
    with Steps(ERR, quiet=as_json) as steps:

        def begin(phase: Phase, absent: int) -> None:
            steps.close()  # the client draws bars of its own
            if not as_json:
                count, size = len(phase.files), human(sum(file.bytes for file in phase.files))
                there = f"; {count - absent} there already" if absent < count else ""
                OUT.print(f"{phase.title}: {count} files, {size}{there}", markup=False, soft_wrap=True)

        done = publish(folder, order, dry_run=dry_run, on_progress=steps, on_phase=begin)
        for phase in done.phases if dry_run else ():
            begin(phase, len(phase.files))
    if as_json:
        print_json(done.to_json())
        return
    if dry_run:
        OUT.print(
            f"{folder} is {done.state}; nothing was sent, the card is written by a real push",
            markup=False,
            soft_wrap=True,
        )
        return
    OUT.print(
        f"{len(done.sent)} files sent, every file compared: {repo} at {done.revision}", markup=False, soft_wrap=True
    )
    if done.pull_request:
        OUT.print(f"pull request {done.pull_request}", markup=False, soft_wrap=True)
    if done.others:
        OUT.print(f"other files there, left alone: {', '.join(done.others)}", markup=False, soft_wrap=True)


COMMAND = push
