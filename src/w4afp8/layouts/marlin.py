"""Marlin for 16-bit activations (formats: C5)."""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast, exponents
from w4afp8.layouts._spec import GATE_UP, OFFSET_BINARY, Holding, Layout, Piece

WEIGHT = Piece("_weight", ORDERS["marlin_16bit"], "I32")

LAYOUT = Layout(
    name="marlin",
    version=1,
    read_by="vLLM 0.33 and SGLang 0.5.23 Marlin, 16-bit activations",
    w13=GATE_UP,
    int4=(Holding(WEIGHT, cast(ORDERS["marlin_scales_16bit"], "BF16", "_weight_scale"), OFFSET_BINARY),),
    mxfp4=(Holding(WEIGHT, exponents(ORDERS["marlin_scales_mxfp4_16bit"], "_weight_scale")),),
    bias=ORDERS["marlin_bias"],
)
