"""The order of this program's own Hopper kernels; `kernels/layout.py` says where every bit lies and why.

A stack is what `torch.ops.w4afp8.fused_moe` takes as w13, w13_scale, w2, w2_scale with layout="sm90".
"""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast
from w4afp8.layouts._spec import GATE_UP, Holding, Layout, Piece

# Sign, and the value's low bits, flipped where it is negative.
VALUES = tuple(code if code < 8 else 8 | 15 - code for code in range(16))
CODES = Piece("", ORDERS["sm90"], "U8")

LAYOUT = Layout(
    name="sm90",
    version=1,
    read_by="torch.ops.w4afp8.fused_moe and grouped_gemm of this program",
    w13=GATE_UP,
    int4=tuple(Holding(CODES, cast(ORDERS["sm90_scales"], dtype, "_scale"), VALUES) for dtype in ("BF16", "F32")),
    mxfp4="the kernels multiply int4 codes; e2m1 codes have no bytes here yet",
    input_scale="F32",
)
