"""Orders of which an engine takes the first that fits a matrix: its shape decides, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.layouts._order import Order


@dataclass(frozen=True)
class FirstFitting:
    """`Order`s that agree on where the experts stand."""

    orders: tuple[Order, ...]

    @property
    def expert_axis(self) -> int:
        return self.orders[0].expert_axis

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        whys = [order.refusal(shape) for order in self.orders]
        return None if None in whys else "; ".join(filter(None, whys))

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._chosen(shape).stored_shape(shape)

    def store(self, logical: Tensor, values: tuple[int, ...] = ()) -> Tensor:
        return self._chosen(tuple(logical.shape)).store(logical, values)

    def load(self, stored: Tensor, shape: tuple[int, ...], values: tuple[int, ...] = ()) -> Tensor:
        return self._chosen(shape).load(stored, shape, values)

    def _chosen(self, shape: tuple[int, ...]) -> Order:
        for order in self.orders:
            if order.refusal(shape) is None:
                return order
        raise FormatError(str(self.refusal(shape)))
