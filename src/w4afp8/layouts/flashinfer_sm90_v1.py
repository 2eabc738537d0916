"""FlashInfer's sm90 mixed-input MoE, the first version of its interleave (formats: C2, C3)."""

from __future__ import annotations

from w4afp8.layouts._flashinfer import V1
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import exponents
from w4afp8.layouts._spec import UP_GATE, Holding, Layout, Piece

LAYOUT = Layout(
    name="flashinfer-sm90-v1",
    version=1,
    read_by=V1,
    w13=UP_GATE,
    int4="these releases interleave scales of one byte per 32 inputs; int4 with one per 128 goes to flashinfer-sm90-v2",
    mxfp4=(
        Holding(
            Piece("_weight", ORDERS["flashinfer_sm90_v1_fp4"], "U8"),
            exponents(ORDERS["flashinfer_sm90_v1_scales_32"], "_weight_scale"),
        ),
    ),
    bias=ORDERS["bias_as_it_is"],
)
