"""Marlin for e4m3 activations (formats: C5): codes as sign and complement, scales times 512."""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast, exponents
from w4afp8.layouts._spec import GATE_UP, Holding, Layout, Piece

WEIGHT = Piece("_weight", ORDERS["marlin_8bit"], "I32")
# Of the offset binary code c: c - 8 from 8 on, else 15 - c.
VALUES = tuple((code ^ 8) - 8 if code ^ 8 >= 8 else 15 - (code ^ 8) for code in range(16))

LAYOUT = Layout(
    name="marlin-fp8",
    version=1,
    read_by="vLLM 0.33 Marlin, e4m3 activations",
    w13=GATE_UP,
    int4=(Holding(WEIGHT, cast(ORDERS["marlin_scales_8bit"], "BF16", "_weight_scale", times=512.0), VALUES),),
    mxfp4=(Holding(WEIGHT, exponents(ORDERS["marlin_scales_8bit"], "_weight_scale", add=6)),),
    bias=ORDERS["marlin_bias"],
)
