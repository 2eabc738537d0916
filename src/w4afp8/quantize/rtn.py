"""Plain rounding: every group takes the scale that other tools would, every weight goes to the nearest code.

The baseline that everything is compared with.
"""

from __future__ import annotations

from w4afp8.quantize._method import ExpertInputs, ExpertResult, ExpertWeights, Method
from w4afp8.recipes._recipe import Strict


class RoundToNearest(Method):
    """No statistics, no folds."""

    class Options(Strict):
        """Plain rounding has nothing to choose."""

    def quantize(self, weights: ExpertWeights, inputs: ExpertInputs) -> ExpertResult:
        plain = self.grid.round_to_nearest
        return ExpertResult(plain(weights.gate_IH), plain(weights.up_IH), plain(weights.down_HI))


METHOD = RoundToNearest
