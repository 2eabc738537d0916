"""Machete for 16-bit activations (formats: C4): one prepack per expert, offset binary."""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast
from w4afp8.layouts._spec import GATE_UP, OFFSET_BINARY, Holding, Layout, Piece

NO_FP4 = "Machete multiplies integer codes"

LAYOUT = Layout(
    name="machete",
    version=1,
    read_by="vLLM 0.33 Machete, bfloat16 or float16 activations",
    w13=GATE_UP,
    int4=(
        Holding(
            Piece("_weight", ORDERS["machete_16bit"], "U8"),
            cast(ORDERS["scales_by_group"], "BF16", "_weight_scale"),
            OFFSET_BINARY,
        ),
    ),
    mxfp4=NO_FP4,
)
