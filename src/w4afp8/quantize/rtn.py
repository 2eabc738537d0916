"""Plain rounding: every group's scale is amax/7.5, every weight goes to the nearest code.

The baseline that everything is compared with; compressed-tensors 0.20 chooses the same scale (formats: D1).
"""

from __future__ import annotations

from torch import Tensor

from w4afp8.formats._spec import GroupWeight
from w4afp8.numerics import groups
from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights, Method
from w4afp8.recipes._recipe import Strict

# The extremes land on +-7.5: codes -8 and 7 share the rounding error of the largest weights.
DIVISOR = 7.5


def round_to_nearest(weight_NK: Tensor) -> GroupWeight:
    """float32 [N, K] -> int4 under amax/7.5, the scale rounded to the bf16 that consumers multiply with."""
    scale_NG = groups.usable(groups.round_to_bf16(groups.amax(weight_NK) / DIVISOR))
    return GroupWeight(groups.round_to_codes(weight_NK, scale_NG), scale_NG)


class RoundToNearest(Method):
    """No statistics, no folds."""

    class Options(Strict):
        """Plain rounding has nothing to choose."""

    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        return ExpertResult(
            round_to_nearest(weights.gate_IH),
            round_to_nearest(weights.up_IH),
            round_to_nearest(weights.down_HI),
        )


METHOD = RoundToNearest
