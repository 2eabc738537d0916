"""The options that `bench` and `tune` share: which problems."""

from __future__ import annotations

from pathlib import Path

import click

kind_argument = click.argument("kind", type=click.Choice(["moe", "gemm"]))
MODEL = click.option("--model", type=click.Path(path_type=Path),
                     help="A checkpoint directory or a config.json: its experts and dense projections.")  # fmt: skip
SHAPE = click.option("--shape", multiple=True, help="A named problem: R1, EP8, TP8, OSS (GPT-OSS-like), DENSE (R1's "
                     "dense projections); may be repeated.")  # fmt: skip
TP = click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="One rank of so many that cut "
                  "every matrix.")  # fmt: skip
EP = click.option("--ep", type=click.IntRange(1), default=1, show_default=True, help="One rank of so many that share "
                  "the experts.")  # fmt: skip
TOKENS = click.option("--tokens", help="Token counts, separated by commas.  [default: 1,8,16,32,...,8192]")
