"""What `convert --layout vllm-cutlass --tolerance` costs: scales on that engine's grid beside the checkpoint's own.

    python benchmarks/bench_tolerance.py W4AFP8-CHECKPOINT [--source ITS-SOURCE]

Of every routed expert: the tolerance that all rows keep, the change of the scales (rms, relative), and the signal to
noise ratio of the weights in dB, once as code * t * c, once as the engine multiplies, which rounds the products of t
with the codes to e4m3 again.  With --source, of a checkpoint without folds, also the ratio of the weights to the
source's before and after: what is lost beside what int4 lost already.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from harness import record
from w4afp8 import layouts
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.layouts._experts import inventory
from w4afp8.layouts._scales import search
from w4afp8.numerics import groups
from w4afp8.validate.sides import Side


class Ratio:
    """Signal and noise, summed up."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        self.signal += float(wanted.double().square().sum())
        self.noise += float((found.double() - wanted.double()).square().sum())

    @property
    def db(self) -> float:
        return round(10 * math.log10(self.signal / self.noise), 2) if self.noise else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--recipe", default="", help="said in the JSON line")
    arguments = parser.parse_args()
    reader = CheckpointReader(arguments.checkpoint)
    output = Side.of(reader, inventory(reader.config, reader.specs)[1])
    source = Side.of(CheckpointReader(arguments.source)) if arguments.source else None
    holdings = layouts.get("vllm-cutlass").int4
    assert not isinstance(holdings, str)
    farthest = squares = 0.0
    count = 0
    ratios = {name: Ratio() for name in ("scales_only", "as_multiplied", "int4_of_source", "then_of_source")}
    names = [
        name for layer in range(output.d.all_layers) if output.d.is_moe(layer) for expert in range(output.d.experts)
        for name in output.expert_names(layer, expert).values()
    ]  # fmt: skip
    for name in names:
        weight = output.group_weight(name)
        codes_NK, scale_NG = weight.codes_NK, weight.scale_NG
        error_N = search(scale_NG)[2]
        table, channel_N = holdings[0].scales.encode(scale_NG, float(error_N.max()))
        near_NG = holdings[0].scales.decode((table, channel_N), scale_NG.shape[1])
        farthest = max(farthest, float(error_N.max()))
        squares += float((near_NG / scale_NG - 1).double().square().sum())
        count += scale_NG.numel()
        true = groups.decode(codes_NK, scale_NG, weight.group_k)
        engine = _as_multiplied(codes_NK, table, channel_N)
        ratios["scales_only"].add(true, groups.decode(codes_NK, near_NG, weight.group_k))
        ratios["as_multiplied"].add(true, engine)
        if source is not None:
            wanted = source.weights.matrix(name)
            ratios["int4_of_source"].add(wanted, true)
            ratios["then_of_source"].add(wanted, engine)
    record("tolerance", {
        "checkpoint": arguments.checkpoint.resolve().name, "recipe": arguments.recipe, "matrices": len(names),
        "tolerance_that_is_enough": round(farthest, 5), "rms_change_of_scales": round((squares / count) ** 0.5, 5),
        "sqnr_db": {name: ratio.db for name, ratio in ratios.items() if ratio.signal},
    })  # fmt: skip


def _as_multiplied(codes_NK: Tensor, table_NG8: Tensor, channel_N: Tensor) -> Tensor:
    """Real weights as the engine's tensor cores see them: sign * (e4m3 product of t with -|code|) * c."""
    n, k = codes_NK.shape
    group = k // table_NG8.shape[1]
    magnitude = codes_NK.long().abs().view(n, -1, group)  # 0..8; the table begins with the product of -8
    products = torch.cat([table_NG8.float(), torch.zeros(*table_NG8.shape[:2], 1)], -1).gather(-1, 8 - magnitude)
    return (-products * codes_NK.view(n, -1, group).sign() * channel_N[:, None, None]).reshape(n, k)


if __name__ == "__main__":
    main()
