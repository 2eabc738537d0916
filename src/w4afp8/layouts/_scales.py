"""Group scales on their way into an engine: cast, multiplied by a power of two, moved as bytes, or searched.

Every rule is exact or refuses, naming the first scale that it cannot hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w4afp8.checkpoint.spec import DTYPES
from w4afp8.errors import FormatError
from w4afp8.layouts._order import Order
from w4afp8.layouts._spec import Piece, Scales, Store

E4M3_STEPS = (8, 9, 10, 11, 12, 13, 14, 15)  # the significands of e4m3, times 8
LARGEST_BY_EIGHT = 56.0  # eight times it is 448, the largest e4m3: vLLM multiplies a scale by -8 at most
SEARCH_ROWS = 512  # of a matrix at once


def _matrix(n: int, g: int) -> tuple[tuple[int, ...], ...]:
    return ((n, g),)


def cast(order: Store, dtype: str, suffix: str, times: float = 1.0) -> Scales:
    """The scales in `dtype`, multiplied by a power of two."""
    kind = DTYPES[dtype]

    def encode(scale_NG: Tensor, tolerance: float) -> tuple[Tensor, ...]:
        stored = (scale_NG * times).to(kind)
        bad = (stored.to(torch.float32) / times != scale_NG).nonzero()
        if len(bad):
            where = bad[0].tolist()
            raise FormatError(f"scale {where} is {scale_NG[tuple(where)].item()!r}, which {dtype} does not hold")
        return (stored,)

    def decode(stored: tuple[Tensor, ...], groups: int) -> Tensor:
        return stored[0].to(torch.float32) / times

    return Scales((Piece(suffix, order, dtype),), encode, decode, _matrix)


def exponents(order: Store, suffix: str, add: int = 0) -> Scales:
    """E8M0 bytes moved as bytes, `add` added to each."""

    def encode(exponent_NG: Tensor, tolerance: float) -> tuple[Tensor, ...]:
        bad = (exponent_NG > 255 - add).nonzero()
        if len(bad):
            where = bad[0].tolist()
            raise FormatError(f"scale byte {where} is {int(exponent_NG[tuple(where)])}, expected at most {255 - add}")
        return (exponent_NG + add,)

    def decode(stored: tuple[Tensor, ...], groups: int) -> Tensor:
        return stored[0] - add

    return Scales((Piece(suffix, order, "U8"),), encode, decode, _matrix)


def one_per_row(order: Store, suffix: str) -> Scales:
    """Channel scales: every group of a row must have the same one."""

    def encode(scale_NG: Tensor, tolerance: float) -> tuple[Tensor, ...]:
        bad = (scale_NG != scale_NG[:, :1]).nonzero()
        if len(bad):
            n, g = bad[0].tolist()
            raise FormatError(
                f"row {n} has the scales {scale_NG[n, 0].item()!r} and {scale_NG[n, g].item()!r} (group {g}); "
                "this layout holds one scale per row"
            )
        return (scale_NG[:, 0].contiguous(),)

    def decode(stored: tuple[Tensor, ...], groups: int) -> Tensor:
        return stored[0][:, None].expand(-1, groups).contiguous()

    return Scales((Piece(suffix, order, "F32"),), encode, decode, lambda n, g: ((n,),))


def table_of_eight(order: Order, channel: Order) -> Scales:
    """vLLM's table: for each group the products of an e4m3 scale t with -8 .. -1, and one float32 scale c per row.

    scale = t * c within the tolerance (relative; 0 is exact), searched over every e4m3 number that a row's largest
    scale can be.  The products are rounded to e4m3 again, which is the engine's own arithmetic.
    """

    def encode(scale_NG: Tensor, tolerance: float) -> tuple[Tensor, ...]:
        found = [search(rows) for rows in torch.split(scale_NG, SEARCH_ROWS)]
        t_NG, channel_N, error_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        _require_near(error_N, tolerance)
        table = (t_NG[..., None] * torch.arange(-8.0, 0.0)).to(torch.float8_e4m3fn)
        return table, channel_N

    def decode(stored: tuple[Tensor, ...], groups: int) -> Tensor:
        table, channel_N = stored
        return -table[..., 7].float() * channel_N[:, None]

    pieces = Piece("_weight_scale", order, "F8_E4M3"), Piece("_weight_chan_scale", channel, "F32")
    return Scales(pieces, encode, decode, lambda n, g: ((n, g, 8), (n,)), searched=True)


class FarScales(FormatError):
    """Scales that stand farther from every number of a grid than was allowed; `distance` is what would have to be."""

    def __init__(self, message: str, distance: float) -> None:
        super().__init__(message)
        self.distance = distance


def search(scale_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest t * c of every row: e4m3 values [N, G], float32 [N], and the largest relative error of a row [N].

    Whatever c is, the row's largest scale is one of eight significands times a power of two: eight c are tried.
    """
    largest_N = scale_NG.amax(1)
    usable_N = torch.where(largest_N > 0, largest_N, torch.ones_like(largest_N))
    tops = torch.tensor([step * (4.0 if 4 * step <= LARGEST_BY_EIGHT else 2.0) for step in E4M3_STEPS])
    channel_SN = usable_N / tops[:, None]
    t_SNG = (scale_NG / channel_SN[..., None]).to(torch.float8_e4m3fn).float()
    found_SNG = t_SNG * channel_SN[..., None]
    safe_NG = torch.where(scale_NG > 0, scale_NG, torch.ones_like(scale_NG))
    error_SN = ((found_SNG - scale_NG).abs() / safe_NG).amax(2)
    best_N = error_SN.argmin(0)
    rows = torch.arange(len(best_N))
    return t_SNG[best_N, rows], channel_SN[best_N, rows], error_SN[best_N, rows]


def _require_near(error_N: Tensor, tolerance: float) -> None:
    """Raises: FarScales naming the first row that is farther away than `tolerance`."""
    bad = (~(error_N <= tolerance)).nonzero()
    if len(bad):
        n = int(bad[0])
        raise FarScales(
            f"row {n}: no e4m3 scales times one factor come nearer than {float(error_N[n]):.2%} to its "
            f"group scales, expected {'equality' if tolerance == 0 else f'at most {tolerance:.2%}'}",
            float(error_N.max()),
        )
