"""Machete for e4m3 activations without 16-bit group scales (formats: C4): one scale per row."""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import one_per_row
from w4afp8.layouts._spec import GATE_UP, OFFSET_BINARY, Holding, Layout, Piece
from w4afp8.layouts.machete import NO_FP4

LAYOUT = Layout(
    name="machete-e4m3",
    version=1,
    read_by="vLLM 0.33 Machete, e4m3 activations, channel scales",
    w13=GATE_UP,
    int4=(
        Holding(
            Piece("_weight", ORDERS["machete_e4m3"], "U8"),
            one_per_row(ORDERS["scales_per_row"], "_weight_scale"),
            OFFSET_BINARY,
        ),
    ),
    mxfp4=NO_FP4,
    note="only where all groups of a row share one scale",
)
