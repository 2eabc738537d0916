"""SGLang's cutlass W4A8 (formats: C1): weights as they are on disk, group scales interleaved by four, or by one.

Agrees with: SGLang 0.5.23 `W4AFp8MoEMethod.process_weights_after_loading`.
"""

from __future__ import annotations

from w4afp8.layouts._first_fitting import FirstFitting
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast
from w4afp8.layouts._spec import GATE_UP, Holding, Layout, Piece

SCALES = FirstFitting((ORDERS["sglang_cutlass_scales_by_four"], ORDERS["scales_by_group"]))

LAYOUT = Layout(
    name="sglang-cutlass",
    version=1,
    read_by="SGLang 0.5.23, cutlass W4A8 after loading",
    w13=GATE_UP,
    int4=(Holding(Piece("_weight", ORDERS["as_it_is"], "I8"), cast(SCALES, "BF16", "_weight_scale_inv")),),
    mxfp4="SGLang's cutlass W4A8 multiplies int4 codes",
    input_scale="BF16",
)
