"""The nouns of a format: what a weight is between reading and writing, and how a format stands in tensors.

Letters: N output rows, K input columns, G groups along K, R x C the grid of 128 x 128 blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.numerics import e8m0, fp4, fp8, groups, int4

MICRO_GROUP = 32  # inputs that share one E8M0 scale in every MXFP4 format
FINE_GROUP = 32  # inputs that share one scale in the int4 checkpoints that are finer than every W4AFP8 kernel


class Weight(Protocol):
    """Any weight in its middle form."""

    def dequantize(self) -> Tensor:
        """The real numbers: float32 [N, K]."""
        ...


class _Packable:
    """Codes [N, K], or (`packed`) their bytes [N, K/2], all that most formats move: one is made from the other.

    In the bytes column 2j stands in the low nibble of byte j.
    """

    __slots__ = ("_bytes_NJ", "_codes_NK")
    _pack: Callable[[Tensor], Tensor]
    _unpack: Callable[[Tensor], Tensor]

    def __init__(self, codes_NK: Tensor | None, bytes_NJ: Tensor | None = None) -> None:
        self._codes_NK = codes_NK
        self._bytes_NJ = None if bytes_NJ is None else bytes_NJ.view(torch.uint8)

    @property
    def codes_NK(self) -> Tensor:
        """One code per element."""
        if self._codes_NK is None:
            assert self._bytes_NJ is not None
            self._codes_NK = self._unpack(self._bytes_NJ)
        return self._codes_NK

    @property
    def bytes_NJ(self) -> Tensor:
        """uint8 [N, K/2].  Raises: QuantizationError naming the first code that has no four bits."""
        if self._bytes_NJ is None:
            assert self._codes_NK is not None
            self._bytes_NJ = self._pack(self._codes_NK).contiguous().view(torch.uint8)
        return self._bytes_NJ


class GroupWeight(_Packable):
    """Int4 in groups along K, the form that every int4 format packs from and unpacks to: real = code * scale, always.

    Codes are int8 in -8..7, two's complement in the bytes.
    """

    __slots__ = ("group_k", "scale_NG")
    _pack = staticmethod(int4.pack_low_first)
    _unpack = staticmethod(int4.unpack_low_first)

    def __init__(
        self, codes_NK: Tensor | None, scale_NG: Tensor, group_k: int = groups.GROUP, bytes_NJ: Tensor | None = None
    ) -> None:
        super().__init__(codes_NK, bytes_NJ)
        self.scale_NG = scale_NG  # float32
        self.group_k = group_k

    @classmethod
    def packed(cls, bytes_NJ: Tensor, scale_NG: Tensor, group_k: int = groups.GROUP) -> GroupWeight:
        return cls(None, scale_NG, group_k, bytes_NJ)

    def dequantize(self) -> Tensor:
        return groups.decode(self.codes_NK, self.scale_NG, self.group_k)


class DoubledWeight(GroupWeight):
    """e2m1 with whole numbers for codes: each is twice the value (0, 1, 2, 3, 4, 6, 8, 12), the scale half of its own.

    What rounding and comparing work on; `MicroWeight` is what is stored.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class FineWeight:
    """Int4 in groups of 32 along K: a source that becomes groups of 128 where four scales are one."""

    bytes_NJ: Tensor  # uint8 [N, K/2], as GroupWeight has them
    scale_NG: Tensor  # float32; real = code * scale

    def dequantize(self) -> Tensor:
        return groups.decode(int4.unpack_low_first(self.bytes_NJ), self.scale_NG, FINE_GROUP)


def in_fine_groups(weight: GroupWeight | FineWeight) -> tuple[Tensor, Tensor]:
    """Bytes of the codes [N, K/2] and a scale for every 32 inputs [N, K/32]: int4 of any groups can be compared so."""
    if isinstance(weight, FineWeight):
        return weight.bytes_NJ, weight.scale_NG
    return weight.bytes_NJ, weight.scale_NG.repeat_interleave(weight.group_k // FINE_GROUP, -1)


@dataclass(frozen=True, slots=True)
class AwareWeight:
    """Int4 groups behind an input scale of their own (AWQ not folded away), with the scalars of an FP8 product."""

    group: GroupWeight
    pre_scale_K: Tensor  # multiplies the input, in the dtype that it is stored in
    scale_2: Tensor  # float32 scalar: amax of the weight / 448
    input_scale: Tensor  # float32 scalar: amax of the pre-scaled input / 448

    def dequantize(self) -> Tensor:
        return self.group.dequantize() * self.pre_scale_K.float()


class MicroWeight(_Packable):
    """MXFP4: e2m1 codes, one power of two per 32 inputs, kept as its byte: real = value * 2^(byte - 127).

    Codes are uint8 in 0..15.
    """

    __slots__ = ("exponent_NG",)
    _pack = staticmethod(fp4.pack_low_first)
    _unpack = staticmethod(fp4.unpack_low_first)

    def __init__(self, codes_NK: Tensor | None, exponent_NG: Tensor, bytes_NJ: Tensor | None = None) -> None:
        super().__init__(codes_NK, bytes_NJ)
        self.exponent_NG = exponent_NG  # uint8, E8M0

    @classmethod
    def packed(cls, bytes_NJ: Tensor, exponent_NG: Tensor) -> MicroWeight:
        return cls(None, exponent_NG, bytes_NJ)

    @classmethod
    def of_doubled(cls, weight: DoubledWeight) -> MicroWeight:
        """Raises: QuantizationError for a scale that is no power of two."""
        return cls(fp4.encode(weight.codes_NK.to(torch.float32) / 2), e8m0.encode(weight.scale_NG * 2))

    def doubled(self) -> DoubledWeight:
        """The same numbers as whole codes; -0 becomes 0, and the scale byte 255 the NaN that it is."""
        codes_NK = fp4.decode(self.codes_NK).mul_(2).to(torch.int8)
        nan_NG = self.exponent_NG == e8m0.NAN
        scale_NG = e8m0.decode(self.exponent_NG.masked_fill(nan_NG, 0)) / 2
        return DoubledWeight(codes_NK, scale_NG.masked_fill_(nan_NG, torch.nan), MICRO_GROUP)

    def dequantize(self) -> Tensor:
        return groups.decode(fp4.decode(self.codes_NK), e8m0.decode(self.exponent_NG), MICRO_GROUP)


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """FP8 with one scale per 128 x 128 block."""

    codes_NK: Tensor  # e4m3
    scale_RC: Tensor  # float32; real = code * scale

    def dequantize(self) -> Tensor:
        return fp8.decode_blocks(self.codes_NK, self.scale_RC)


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """Stored as it is."""

    real_NK: Tensor

    def dequantize(self) -> Tensor:
        return self.real_NK.float()


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a format: its suffix on the weight's stem (`...gate_proj`), its dtype, its shape from (N, K)."""

    suffix: str
    dtypes: tuple[str, ...]  # the first is the one that is written
    shape: Callable[[int, int], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one matrix stands in tensors, both ways."""

    name: str
    bits: int
    form: type[Weight]  # what it unpacks to: formats of one form hold the same numbers
    parts: tuple[Part, ...]
    unpack: Callable[[Mapping[str, Tensor]], Weight]  # suffix -> tensor
    pack: Callable[[Any], dict[str, Tensor]]
    # Real numbers to the middle form, for formats that need nothing but the numbers to choose their codes.
    encode: Callable[[Tensor], Weight] | None = None

    def specs(self, stem: str, n: int, k: int, stack: int = 0) -> list[TensorSpec]:
        """The tensors that a matrix [n, k] takes, or that many of them stacked along a first axis, as written."""
        return [TensorSpec(stem + p.suffix, p.dtypes[0], _stacked(p.shape(n, k), stack)) for p in self.parts]

    def refusal(self, stem: str, siblings: Mapping[str, TensorSpec], n: int, k: int, stack: int = 0) -> str | None:
        """Why these tensors are not a matrix [n, k] (or a stack of them) of this format, or None when they are."""
        for part in self.parts:
            found = siblings.get(stem + part.suffix)
            if found is None:
                return f"{part.suffix} is missing"
            if found.dtype not in part.dtypes:
                return f"{part.suffix} is {found.dtype}, expected {' or '.join(part.dtypes)}"
            try:
                expected = _stacked(part.shape(n, k), stack)
            except Exception as error:
                return str(error)
            if found.shape != expected:
                return f"{part.suffix} is {list(found.shape)}, expected {list(expected)} for [{n}, {k}]"
        return None


def _stacked(shape: tuple[int, ...], stack: int) -> tuple[int, ...]:
    return (stack, *shape) if stack else shape


def vector(dtype: str) -> WeightFormat:
    """A vector as a matrix of one column, so that what has one number for each row moves as the rows do."""
    return WeightFormat(
        name=dtype,
        bits=16,
        form=PlainWeight,
        parts=(Part("", (dtype,), lambda n, k: (n,)),),
        unpack=lambda parts: PlainWeight(parts[""]),
        pack=lambda weight: {"": weight.real_NK},
    )


def matrix(n: int, k: int) -> tuple[int, ...]:
    """The shape of an unpacked matrix."""
    return (n, k)


def codes(per: int, group_k: int = groups.GROUP) -> Callable[[int, int], tuple[int, ...]]:
    """The shape of 4-bit codes, `per` of them along K in an element; it raises QuantizationError for a cut group."""

    def shape(n: int, k: int) -> tuple[int, ...]:
        groups.count(k, group_k)
        return (n, k // per)

    return shape


def scales(group_k: int = groups.GROUP) -> Callable[[int, int], tuple[int, ...]]:
    """The shape of one scale per row and group along K; it raises QuantizationError for a cut group."""
    return lambda n, k: (n, groups.count(k, group_k))
