"""The reader kernel.  Imports triton, which comes with torch for CUDA and with no other."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU torch: nothing here will be launched
    triton = None


# triton reads annotations: an argument that is no compile-time constant must have none.
def _read(x, out, n, BLOCK: tl.constexpr, UNROLL: tl.constexpr):  # type: ignore[no-untyped-def]
    pid = tl.program_id(0)
    acc = tl.zeros([BLOCK], tl.int32)
    for i in range(pid * BLOCK * UNROLL, n, tl.num_programs(0) * BLOCK * UNROLL):
        for u in tl.static_range(UNROLL):
            acc ^= tl.load(x + i + u * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + pid, tl.sum(acc, 0))


read: Any = triton.jit(_read) if triton else None
