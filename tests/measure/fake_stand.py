"""A stand on the CPU: the plain twins in the kernels' place, and a clock that a test sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from w4afp8.kernels import reference, schedules
from w4afp8.kernels.calls import GemmCall
from w4afp8.kernels.layers import OneLaunch
from w4afp8.kernels.schedules import Schedule
from w4afp8.measure.floor import Machine
from w4afp8.measure.timing import Call, Timing

ABOUT = {"device": "a Hopper", "driver": "999.1", "cuda": "13.0", "torch": "2.13", "w4afp8": "0", "date": "2026-11-21"}
MACHINE = Machine({16: 5.0, 64: 16.0, 4096: 900.0}, 1.5e9)


class InProcess:
    """A worker of benchmarks/worker.py whose server is here; everything passes through JSON."""

    def __init__(self, name: str, server: object) -> None:
        self.name, self.server, self.said = name, server, [""]

    def send(self, verb: str, *words: Any) -> None:
        self.said.append(json.dumps(getattr(self.server, verb)(*json.loads(json.dumps(words)))))

    def answer(self) -> Any:
        return json.loads(self.said.pop())

    def ask(self, verb: str, *words: Any) -> Any:
        self.send(verb, *words)
        return self.answer()


@dataclass
class Clock:
    """Calls everything once; a call takes what `price` says of the schedule that ran last."""

    price: Callable[[str], float] = lambda kernel: 10.0
    ran: list[Schedule | OneLaunch] = field(default_factory=list)
    spoils: Callable[[Schedule | OneLaunch, Tensor], object] = lambda row, out: None
    products: dict[int, tuple[Any, Tensor]] = field(default_factory=dict)  # of a call: the same under every schedule

    def __call__(self, calls: Sequence[Call], replays: int = 15) -> Timing:
        for call in calls:
            call()
        return Timing(self.price(self.ran[-1].kernel) if self.ran else 10.0, 0.5)

    def gemm(self, call: GemmCall, row: Schedule, out: Tensor | None) -> Tensor:
        self.ran.append(row)
        found = self._once(call, reference.grouped_gemm)
        if out is not None:
            assert bool(out.isnan().all()), "not poisoned"
            found = out.copy_(found)
        self.spoils(row, found)
        return found

    def layer(self, call: Any) -> Tensor:
        """The layer chooses schedules where the kernels would."""
        for w in (call.w13, call.w2):
            problem = schedules.Problem(call.topk_ids.numel(), w.shape[0], w.shape[1] * 64, w.shape[2] * 128)
            self.ran.append(schedules.choose(problem))
        return self._once(call, reference.fused_moe)

    def way(self, call: Any, row: OneLaunch | None, out: Tensor | None) -> Tensor:
        found = self.layer(call)
        if row:
            self.ran.append(row)
        if out is not None:
            assert bool(out.isnan().all()), "not poisoned"
            found = out.copy_(found)
        self.spoils(self.ran[-1], found)
        return found

    def _once(self, call: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """A product computed once, of which each asker gets a copy."""
        if id(call) not in self.products:
            self.products[id(call)] = (call, compute(call))  # a call that is kept alive keeps its id
        return self.products[id(call)][1].clone()
