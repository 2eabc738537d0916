"""vLLM's CUTLASS W4A8 (formats: C6): codes 1..7 negated, an e4m3 table of eight per group, one scale per row.

The reordering was derived from the source, not from a run of it.
"""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import table_of_eight
from w4afp8.layouts._spec import GATE_UP, Holding, Layout, Piece

NEGATED = tuple(8 - code if 1 <= code <= 7 else code for code in range(16))

LAYOUT = Layout(
    name="vllm-cutlass",
    version=1,
    read_by="vLLM 0.33 CUTLASS W4A8",
    w13=GATE_UP,
    int4=(
        Holding(
            Piece("_weight_packed", ORDERS["vllm_cutlass"], "U8"),
            table_of_eight(ORDERS["vllm_cutlass_table"], ORDERS["scales_per_row"]),
            NEGATED,
        ),
    ),
    mxfp4="vLLM's CUTLASS W4A8 multiplies int4 codes",
    pad=256,
    note="scales must be e4m3 times one factor per row, or come as near as --tolerance says",
)
