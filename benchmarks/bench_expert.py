"""How long one expert of DeepSeek-R1's size takes: gate and up [2048, 7168], down [7168, 2048], random weights.

    python benchmarks/bench_expert.py [cuda|cpu] [TOKENS]

The first expert of a shape records the GPU's steps; the median of the next three is reported.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from harness import record
from w4afp8 import quantize
from w4afp8.quantize._gram import gram
from w4afp8.quantize._method import PRIOR_TOKENS, ExpertInputs, ExpertWeights, LayerPrior
from w4afp8.recipes._load import load

HIDDEN, INTERMEDIATE = 7168, 2048


def main(device: str, tokens: int) -> None:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    weights = ExpertWeights(
        random(INTERMEDIATE, HIDDEN) * 0.02, random(INTERMEDIATE, HIDDEN) * 0.02, random(HIDDEN, INTERMEDIATE) * 0.02
    )
    sample = random(PRIOR_TOKENS, HIDDEN)
    inputs = ExpertInputs(
        random(tokens, HIDDEN), torch.rand(tokens, device=device), tokens, LayerPrior(gram(sample), sample)
    )
    _, method = quantize.resolve(load("balanced"))
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.monotonic()
            result = method.quantize(weights, inputs)
            int(result.down.codes_NK[0, 0])  # waits for the device
            seconds.append(time.monotonic() - began)
    record(
        "expert",
        {"on": device, "tokens": tokens, "first_seconds": seconds[0], "median_seconds": statistics.median(seconds[1:])},
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu", int(sys.argv[2]) if len(sys.argv) > 2 else 2048)
