"""lyraW4AFp8's Machete: e4m3 activations, 16-bit group scales, all experts in one prepack (formats: C4)."""

from __future__ import annotations

from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import cast
from w4afp8.layouts._spec import GATE_UP, OFFSET_BINARY, Holding, Layout, Piece
from w4afp8.layouts.machete import NO_FP4

LAYOUT = Layout(
    name="machete-lyra",
    version=1,
    read_by="TMElyralab lyraW4AFp8",
    w13=GATE_UP,
    int4=(
        Holding(
            Piece("_weight", ORDERS["machete_e4m3_group_scales"], "U8"),
            cast(ORDERS["machete_scales_stacked"], "BF16", "_weight_scale"),
            OFFSET_BINARY,
        ),
    ),
    mxfp4=NO_FP4,
    note="experts are stacked on N, so no expert is contiguous: slice for EP before, as --ep does",
)
