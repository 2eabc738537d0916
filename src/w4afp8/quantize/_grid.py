"""The numbers that a 4-bit code can stand for, and the scales that may multiply them.

A method rounds on a grid and never asks which.  Codes are whole numbers with real = code * scale, also on e2m1: there a
code is twice the value (0, 1, 2, 3, 4, 6, 8, 12) and the scale half the power of two that is stored.
Letters: N rows, K columns, G groups along K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from w4afp8.formats._spec import MICRO_GROUP, DoubledWeight, GroupWeight, MicroWeight, Weight
from w4afp8.numerics import e8m0, fp4, groups
from w4afp8.numerics.int4 import HIGHEST, LOWEST

# Multiples of amax/7.  Below 0.5 the clipping always costs more than the finer grid saves.
RATIOS = torch.linspace(0.5, 1.15, 27).tolist()
COARSE_RATIOS = (0.6, 0.7, 0.8, 0.9, 1.0)


class Grid(ABC):
    """What a code may be, what a scale may be, and how both are stored."""

    group: int  # inputs that share a scale

    @abstractmethod
    def snap_(self, codes: Tensor) -> Tensor:
        """The nearest codes, ties to the even one, in place."""

    @abstractmethod
    def plain(self, amax: Tensor) -> Tensor:
        """The scale of plain rounding for groups of that largest magnitude; positive, also for a group of zeros."""

    @abstractmethod
    def candidates(self, amax: Tensor, coarse: bool = False) -> Iterator[Tensor]:
        """Scales worth trying, one tensor like `amax` after the other; fewer where folds are only compared."""

    @abstractmethod
    def nearest_scale(self, wanted: Tensor) -> Tensor:
        """The nearest scale that can be stored, of positive numbers."""

    @abstractmethod
    def weight(self, rounded: GroupWeight) -> Weight:
        """Codes and scales in the middle form that formats pack."""

    def round_to_nearest(self, weight_NK: Tensor) -> GroupWeight:
        """Plain rounding: float32 [N, K] -> codes under the plain scale."""
        scale_NG = self.plain(groups.amax(weight_NK, self.group))
        return GroupWeight(self.round(weight_NK, scale_NG), scale_NG, self.group)

    def round(self, weight_NK: Tensor, scale_NG: Tensor) -> Tensor:
        """Nearest codes under these scales: float32 [N, K], [N, G] -> int8 [N, K]."""
        n, k = weight_NK.shape
        grouped = weight_NK.view(n, groups.count(k, self.group), self.group) / scale_NG[..., None]
        return self.snap_(grouped).to(torch.int8).view(n, k)


class Int4(Grid):
    """-8..7 under bfloat16 scales of 128 inputs."""

    group = groups.GROUP
    # Plain rounding is amax/7.5: the extremes land on +-7.5, codes -8 and 7 share the error of the largest weights.
    # compressed-tensors 0.20 chooses the same scale (formats: D1).
    DIVISOR = 7.5

    def snap_(self, codes: Tensor) -> Tensor:
        return codes.round_().clamp_(LOWEST, HIGHEST)

    def plain(self, amax: Tensor) -> Tensor:
        return groups.usable(groups.round_to_bf16(amax / self.DIVISOR))

    def candidates(self, amax: Tensor, coarse: bool = False) -> Iterator[Tensor]:
        base = amax / 7
        for ratio in COARSE_RATIOS if coarse else RATIOS:
            yield groups.usable(groups.round_to_bf16(base * ratio))

    def nearest_scale(self, wanted: Tensor) -> Tensor:
        return groups.round_to_bf16(wanted)

    def weight(self, rounded: GroupWeight) -> Weight:
        return rounded


class E2M1(Grid):
    """MXFP4: e2m1 under powers of two of 32 inputs."""

    group = MICRO_GROUP
    HALF = 0.5  # a code is twice its value

    def snap_(self, codes: Tensor) -> Tensor:
        # The step is 1 below 4, 2 below 8 and 4 beyond; half-even rounding of code/step ties to the even e2m1 code.
        size = codes.abs()
        step = 1.0 + (size >= 4).to(codes.dtype) + 2.0 * (size >= 8).to(codes.dtype)
        return codes.div_(step).round_().mul_(step).clamp_(-2 * fp4.LARGEST, 2 * fp4.LARGEST)

    def plain(self, amax: Tensor) -> Tensor:
        """compressed-tensors 0.20: amax rounded to e2m1's one mantissa bit, then its exponent less 2 (formats: D4)."""
        lifted = (amax.view(torch.int32) + 0x200000).view(torch.float32)
        return self._scale(_exponent(lifted) - 2, amax)

    def candidates(self, amax: Tensor, coarse: bool = False) -> Iterator[Tensor]:
        # Of amax's own exponent less 2, the neighbours: two suffice for plain errors, three under a Gram.
        floor = _exponent(amax) - 2
        for shift in (0, 1) if coarse else (-1, 0, 1):
            yield self._scale(floor + shift, amax)

    def nearest_scale(self, wanted: Tensor) -> Tensor:
        return torch.exp2(torch.log2(wanted).round_().clamp_(-e8m0.BIAS - 1, e8m0.BIAS - 1))

    def weight(self, rounded: GroupWeight) -> Weight:
        return MicroWeight.of_doubled(DoubledWeight(rounded.codes_NK, rounded.scale_NG, self.group))

    def _scale(self, exponent: Tensor, amax: Tensor) -> Tensor:
        """Half of 2^exponent, as far as E8M0 goes; 1/2 for a group of zeros."""
        power = e8m0.decode((exponent.clamp(-e8m0.BIAS, e8m0.BIAS) + e8m0.BIAS).to(torch.uint8))
        return torch.where(amax > 0, power, torch.ones_like(power)) * self.HALF


def _exponent(positive: Tensor) -> Tensor:
    """floor(log2) of normal float32 numbers: int32."""
    return (positive.view(torch.int32) >> 23) - 127


INT4, MXFP4 = Int4(), E2M1()
OF_SCHEME: dict[str, Grid] = {"W4AFP8": INT4, "MXFP4": MXFP4}
