"""One expert's matrices to the pieces of a stack and back: cut, padded, joined, recoded, put in order.

Letters: N output rows, K input columns, J = K/2 bytes, G groups along K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from w4afp8.checkpoint.spec import DTYPES, TensorSpec
from w4afp8.errors import FormatError
from w4afp8.formats._spec import GroupWeight, MicroWeight, Weight
from w4afp8.layouts._spec import STACKS, Holding, Layout, Piece
from w4afp8.layouts._split import Split

Stored = dict[str, Tensor]  # by the piece's suffix; the expert axis is 1 long


@dataclass(frozen=True)
class Matrix:
    """Codes two to a byte, low nibble first, in the form's own encoding, and their scales as the form has them."""

    bytes_NJ: Tensor
    scale_NG: Tensor

    @staticmethod
    def of(weight: Weight) -> Matrix:
        if isinstance(weight, GroupWeight):
            return Matrix(weight.bytes_NJ, weight.scale_NG)
        assert isinstance(weight, MicroWeight), "the plan lets no other form through"
        return Matrix(weight.bytes_NJ, weight.exponent_NG)

    def weight(self, form: type[Weight]) -> Weight:
        """The middle form again."""
        made = GroupWeight if form is GroupWeight else MicroWeight
        return made.packed(self.bytes_NJ, self.scale_NG)


@dataclass(frozen=True)
class Stacker:
    """Everything that decides where a code goes."""

    layout: Layout
    holding: Holding
    split: Split
    tolerance: float = 0.0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (self.holding.codes, *self.holding.scales.pieces)

    @property
    def keeps_scales(self) -> bool:
        """Whether the stored scales are near the true ones, which are then kept beside."""
        return self.tolerance > 0

    def shape(self, stack: str) -> tuple[int, int]:
        """[N, K] of one expert as it is stored."""
        s = self.split
        return (2 * s.intermediate, s.hidden) if stack == "w13" else (s.hidden, s.intermediate)

    def logical(self, stack: str) -> list[tuple[int, ...]]:
        """The logical shape of each piece, of one expert."""
        n, k = self.shape(stack)
        scales = self.holding.scales.shapes(n, k // self.split.sizes.group)
        return [(1, n, k // 2), *((1, *shape) for shape in scales)]

    def refusals(self) -> list[str]:
        """Each piece whose order does not take the shape, in words."""
        found = []
        for stack in STACKS:
            for piece, shape in zip(self.pieces, self.logical(stack), strict=True):
                why = piece.order.refusal(shape)
                found += [f"{stack}{piece.suffix} of {list(self.shape(stack))}: {why}"] if why else []
        return found

    def specs(self, stem: str) -> list[tuple[str, Piece, TensorSpec]]:
        """(stack, piece, tensor) of everything a rank holds of one layer."""
        found = []
        for stack in STACKS:
            for piece, logical in zip(self.pieces, self.logical(stack), strict=True):
                shape = piece.order.stored_shape((self.split.local_experts, *logical[1:]))
                if piece is self.holding.codes:
                    shape = (*shape[:-1], shape[-1] // DTYPES[piece.dtype].itemsize)
                found.append((stack, piece, TensorSpec(f"{stem}.{stack}{piece.suffix}", piece.dtype, shape)))
        return found

    def check(self, stack: str, matrices: Mapping[str, Matrix], tp_rank: int) -> None:
        """Raises: FormatError when the scales are not held."""
        scales = {name: matrix.scale_NG for name, matrix in matrices.items()}
        self.holding.scales.encode(self._join(stack, scales, tp_rank, self.split.sizes.group), self.tolerance)

    def store(self, stack: str, matrices: Mapping[str, Matrix], tp_rank: int) -> Stored:
        """One expert's matrices, by projection, to the pieces of its stack on one rank."""
        codes = self._join(stack, {name: m.bytes_NJ for name, m in matrices.items()}, tp_rank, 2)
        scales = {name: m.scale_NG for name, m in matrices.items()}
        scale_NG = self._join(stack, scales, tp_rank, self.split.sizes.group)
        logical = (codes, *self.holding.scales.encode(scale_NG, self.tolerance))
        stored = {}
        for piece, tensor in zip(self.pieces, logical, strict=True):
            found = piece.order.store(tensor[None], self._values(piece)).contiguous()
            stored[piece.suffix] = found.view(DTYPES[piece.dtype])
        return stored

    def load(self, stack: str, stored: Mapping[str, Tensor], tp_rank: int) -> dict[str, Matrix]:
        """The inverse of `store`: a rank's share of each matrix, padding cut off."""
        logical = []
        for piece, shape in zip(self.pieces, self.logical(stack), strict=True):
            raw = stored[piece.suffix]
            raw = raw.view(torch.uint8) if piece is self.holding.codes else raw
            logical.append(piece.order.load(raw, shape, self._values(piece))[0])
        groups = self.shape(stack)[1] // self.split.sizes.group
        codes = logical[0]
        if self.keeps_scales:  # what is stored is only near them
            scale_NG = torch.ones((codes.shape[0], groups))
        else:
            scale_NG = self.holding.scales.decode(tuple(logical[1:]), groups)
        return self._part(stack, Matrix(codes, scale_NG), tp_rank)

    def _values(self, piece: Piece) -> tuple[int, ...]:
        """What becomes of each code, where there are codes."""
        return self.holding.values if piece is self.holding.codes else ()

    def _join(self, stack: str, tensors: Mapping[str, Tensor], tp_rank: int, per: int) -> Tensor:
        """A rank's share of the tensors of each projection, padded; an element stands for `per` inputs."""
        share = self.split.share(tp_rank)
        halves = self.layout.w13 if stack == "w13" else STACKS[stack]
        n, k = self.shape(stack)
        n //= len(halves)
        cut = (share, slice(None)) if stack == "w13" else (slice(None), slice(share.start // per, share.stop // per))
        parts = [_padded(tensors[projection][cut], n, k // per) for projection in halves]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, stack: str, joined: Matrix, tp_rank: int) -> dict[str, Matrix]:
        share, sizes = self.split.share(tp_rank), self.split.sizes
        length = share.stop - share.start
        halves = self.layout.w13 if stack == "w13" else STACKS[stack]
        n = self.shape(stack)[0] // len(halves)
        rows, k = (length, sizes.hidden) if stack == "w13" else (sizes.hidden, length)
        return {
            projection: Matrix(
                joined.bytes_NJ[at * n : at * n + rows, : k // 2],
                joined.scale_NG[at * n : at * n + rows, : k // sizes.group],
            )
            for at, projection in enumerate(halves)
        }

    def whole(self, stack: str, parts: list[dict[str, Matrix]]) -> dict[str, Matrix]:
        """The matrices of one expert from the shares of every TP rank, in order."""
        if len(parts) == 1:
            return parts[0]
        axis = 0 if stack == "w13" else 1
        return {
            projection: Matrix(
                torch.cat([part[projection].bytes_NJ for part in parts], axis),
                torch.cat([part[projection].scale_NG for part in parts], axis),
            )
            for projection in STACKS[stack]
        }


def make(layout: Layout, form: str, split: Split, holding: int = 0, tolerance: float = 0.0) -> Stacker:
    """The stacker of a layout for a form.  Raises: FormatError when it holds none, or these sizes do not fit it."""
    holdings = layout.holdings(form)
    if isinstance(holdings, str):
        raise FormatError(f"{layout.name} holds no {form} weights: {holdings}")
    return Stacker(layout, holdings[holding], split, tolerance)


def _padded(tensor_NM: Tensor, n: int, m: int) -> Tensor:
    rows, columns = tensor_NM.shape
    return tensor_NM if (rows, columns) == (n, m) else pad(tensor_NM, (0, m - columns, 0, n - rows))
