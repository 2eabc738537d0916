"""What this GPU does at most, now: plain reads of several sizes, and torch's own e4m3 product.  Needs triton."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from w4afp8.measure._read import read
from w4afp8.measure.floor import MIB, Machine
from w4afp8.measure.timing import Call, graph_time

SIZES_MIB = (16, 64, 256, 4096)
# (programs a multiprocessor, words a load, loads under way, warps): the two best of a search on an H200.
READERS = ((2, 8192, 2, 16), (4, 4096, 2, 8))
SQUARE = 8192


def measure() -> Machine:
    """Takes about a second and 4 GiB of the device."""
    data = memory()
    reads = {mib: _read_us(data, mib * MIB // 4) for mib in SIZES_MIB}
    return Machine(reads, 2 * SQUARE**3 / graph_time([product()]).us)


def memory() -> Tensor:
    """What is read: the largest size, random."""
    data = torch.empty((SIZES_MIB[-1] * MIB // 4,), dtype=torch.int32, device="cuda")
    for begin in range(0, len(data), 1 << 28):
        data[begin : begin + (1 << 28)].random_()
    return data


def plain_reads(data: Tensor, words: int) -> list[list[Call]]:
    """Each reader's calls, of `words` each: over as many different parts as there are, up to 32."""
    parts = [data[i * words : (i + 1) * words] for i in range(min(32, len(data) // words))]
    out = torch.empty(4096, dtype=torch.int32, device="cuda")
    sms = torch.cuda.get_device_properties().multi_processor_count
    return [
        [partial(read[(sms * programs,)], part, out, words, block, unroll, num_warps=warps) for part in parts]
        for programs, block, unroll, warps in READERS
    ]


def product() -> Call:
    """torch's own product of two random e4m3 matrices of SQUARE x SQUARE."""
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    return partial(torch._scaled_mm, a, b.t(), out_dtype=torch.bfloat16, scale_a=one, scale_b=one, use_fast_accum=True)


def _read_us(data: Tensor, words: int) -> float:
    """The faster reader's time."""
    return min(graph_time(calls, replays=8).us for calls in plain_reads(data, words))
