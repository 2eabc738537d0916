"""FlashInfer's sm90 mixed-input MoE, the second version of its interleave (formats: C2, C3)."""

from __future__ import annotations

from w4afp8.layouts._flashinfer import V2
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast, exponents
from w4afp8.layouts._spec import UP_GATE, Holding, Layout, Piece

LAYOUT = Layout(
    name="flashinfer-sm90-v2",
    version=1,
    read_by=V2,
    w13=UP_GATE,
    int4=(
        Holding(
            Piece("_weight", ORDERS["flashinfer_sm90_int4"], "U8"),
            cast(ORDERS["flashinfer_sm90_v2_scales_128"], "BF16", "_weight_scale"),
        ),
    ),
    mxfp4=(
        Holding(
            Piece("_weight", ORDERS["flashinfer_sm90_v2_fp4"], "U8"),
            exponents(ORDERS["flashinfer_sm90_v2_scales_32"], "_weight_scale"),
        ),
    ),
    input_scale="F32",
    bias=ORDERS["bias_as_it_is"],
)
