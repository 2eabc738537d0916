"""Quality on the miniature: KL(source || quantized) of recipes as a share of plain rounding's, in one run.

    python benchmarks/bench_quality.py [RECIPE ...]

Every recipe calibrates on 64 k tokens of the bundled text; 32 x 512 tokens of demo/evaluation.jsonl are evaluated with
FP8 activations simulated per token and with the static scales that the checkpoint carries.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from harness import EVALUATION, MINIATURE, record
from w4afp8 import pipeline
from w4afp8.evaluate import evaluate_many
from w4afp8.recipes._load import load

PLAIN = "rtn"


def main(recipes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        targets, seconds = [], {}
        for name in (PLAIN, *recipes):
            recipe, *settings = name.split(",")
            out = Path(scratch) / name.replace("/", "_")
            began = time.process_time()
            pipeline.run(pipeline.prepare(MINIATURE, load(recipe, settings), out))
            seconds[name] = time.process_time() - began
            targets += [(out, "token"), (out, "static")]
        found = evaluate_many(targets, MINIATURE, EVALUATION, sequences=32, sequence=512)
    plain = found[0]
    for i, name in enumerate((PLAIN, *recipes)):
        token, static = found[2 * i], found[2 * i + 1]
        record(
            "quality",
            {
                "recipe": name,
                "kl_token": token.kl,
                "kl_token_standard_error": token.kl_standard_error,
                "kl_static": static.kl,
                "share_of_plain_rounding": token.kl / plain.kl,
                "static_over_token": static.kl / token.kl,
                "perplexity": token.perplexity,
                "source_perplexity": token.source_perplexity,
                "top1_agreement": token.top1_agreement,
                "cpu_seconds": round(seconds[name], 1),
            },
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["balanced"])
