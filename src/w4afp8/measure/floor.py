"""The least time: bytes over the machine's read bandwidth or multiplications over its e4m3 rate, whichever is longer.

Bytes of a GEMM: packed weights and scales of the experts hit, every row of x once (once per token where the choices of
a token share it), the bfloat16 output.  Of a layer: both weights of the experts hit, the hidden state in and out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w4afp8.measure.shapes import Gemm, Layer

WEIGHT_BYTES = 0.5 + 2 / 128  # of one int4 weight with its share of a bfloat16 scale
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device can do at most, measured in the same run as what is compared with it."""

    reads_us: Mapping[int, float]  # MiB -> microseconds of a plain read, buffers larger than L2 in all
    flop_us: float  # e4m3 multiply-adds of `torch._scaled_mm`, two each, per microsecond

    @property
    def bytes_us(self) -> float:
        """Read bandwidth in bytes per microsecond, of the largest read."""
        most = max(self.reads_us)
        return most * MIB / self.reads_us[most]

    def read_us(self, count: float) -> float:
        """What a plain read of that many bytes takes: between measured sizes a straight line, beyond them the rate."""
        sizes = sorted(self.reads_us)
        mib = count / MIB
        if mib >= sizes[-1]:
            return count / self.bytes_us
        place = max(1, bisect_left(sizes, mib))
        low, high = sizes[place - 1 : place + 1]
        slope = (self.reads_us[high] - self.reads_us[low]) / (high - low)
        return max(self.reads_us[low] + slope * (mib - low), count / self.bytes_us)

    def to_json(self) -> dict[str, float]:
        return {
            **{f"read_{mib}MiB_us": us for mib, us in self.reads_us.items()},
            "read_bytes_us": self.bytes_us,
            "fp8_flop_us": self.flop_us,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Machine:
        """The inverse; other keys of the record are left alone."""
        reads = {
            int(key.removeprefix("read_").removesuffix("MiB_us")): float(value)
            for key, value in record.items()
            if key.startswith("read_") and key.endswith("MiB_us")
        }
        rate = float(record["fp8_flop_us"])
        if not reads or not min(*reads, *reads.values(), rate) > 0:
            raise ValueError("a machine without a read or with a rate that is not above zero")
        return Machine(reads, rate)


@dataclass(frozen=True, slots=True)
class Work:
    """What a call must at least move and multiply."""

    bytes: float
    flops: float

    def floor_us(self, machine: Machine) -> float:
        """The least time on that machine."""
        return max(self.bytes / machine.bytes_us, self.flops / machine.flop_us)

    def bound(self, machine: Machine) -> str:
        """Which of the two binds."""
        return "bytes" if self.bytes / machine.bytes_us > self.flops / machine.flop_us else "flops"


def gemm_work(gemm: Gemm, rows: int, hit: int, distinct: int) -> Work:
    """Of a GEMM over `rows` rows that belong to `distinct` tokens and reach `hit` experts."""
    weights = hit * gemm.rows * gemm.cols
    moved = weights * WEIGHT_BYTES + 2 * rows * gemm.rows + (distinct if gemm.gathers else rows) * gemm.cols
    return Work(moved, 2 * rows * gemm.rows * gemm.cols)


def layer_work(layer: Layer, tokens: int, pairs: int, hit: int) -> Work:
    """Of a layer over `tokens` tokens with `pairs` choices here."""
    weights = hit * 3 * layer.inner * layer.hidden
    return Work(weights * WEIGHT_BYTES + 4 * tokens * layer.hidden, 6 * pairs * layer.inner * layer.hidden)
