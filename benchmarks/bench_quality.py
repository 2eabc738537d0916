"""Quality on the miniature: KL(source || quantized) of recipes as a share of plain rounding's, in one run.

    python benchmarks/bench_quality.py [--scheme MXFP4] [RECIPE ...]

With a scheme, plain rounding is that of the scheme: for MXFP4 the exponents of compressed-tensors 0.20.

Every recipe calibrates on 64 k tokens of the bundled text; 32 x 512 tokens of demo/evaluation.jsonl are evaluated with
FP8 activations simulated per token and, where the format has them, with the static scales that the checkpoint carries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness import EVALUATION, MINIATURE, record
from w4afp8 import pipeline
from w4afp8.evaluate import evaluate_many
from w4afp8.recipes._load import load

PLAIN = "rtn"


def main(recipes: list[str], scheme: str) -> None:
    kinds = ("token", "static") if scheme == "W4AFP8" else ("token",)
    with tempfile.TemporaryDirectory() as scratch:
        targets, seconds, bits = [], {}, {}
        for name in (PLAIN, *recipes):
            recipe, *settings = name.split(",")
            out = Path(scratch) / name.replace("/", "_")
            began = time.process_time()
            run = pipeline.prepare(MINIATURE, load(recipe, [f"scheme={scheme}", *settings]), out)
            bits[name] = pipeline.run(run)["bits_per_weight"]
            seconds[name] = time.process_time() - began
            targets += [(out, kind) for kind in kinds]
        found = evaluate_many(targets, MINIATURE, EVALUATION, sequences=32, sequence=512)
    plain = found[0]
    for i, name in enumerate((PLAIN, *recipes)):
        token, *static = found[len(kinds) * i : len(kinds) * (i + 1)]
        record(
            "quality",
            {
                "recipe": name,
                "scheme": scheme,
                "bits_per_weight": bits[name],
                "kl_token": token.kl,
                "kl_token_standard_error": token.kl_standard_error,
                **({"kl_static": static[0].kl, "static_over_token": static[0].kl / token.kl} if static else {}),
                "share_of_plain_rounding": token.kl / plain.kl,
                "perplexity": token.perplexity,
                "source_perplexity": token.source_perplexity,
                "top1_agreement": token.top1_agreement,
                "cpu_seconds": round(seconds[name], 1),
            },
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["balanced"], metavar="RECIPE")
    parser.add_argument("--scheme", default="W4AFP8", choices=["W4AFP8", "MXFP4"])
    given = parser.parse_args()
    main(given.recipes, given.scheme)
