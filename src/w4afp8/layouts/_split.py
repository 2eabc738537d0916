"""Which part of every expert a rank holds (TP), which experts (EP), and how far both are padded.

TP cuts the intermediate size: rows of gate and of up, inputs of down.  A cut never goes through a group of inputs that
share a scale; where the groups do not divide, the last rank is shorter and padded, as for GPT-OSS (formats: C7).
EP keeps whole experts: rank r holds experts r * E / ep onwards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """One layer's experts as they are: counts and lengths in elements; `group` inputs share a scale."""

    experts: int
    hidden: int
    intermediate: int
    group: int


@dataclass(frozen=True)
class Split:
    """`tp` x `ep` ranks over experts of `sizes`; lengths are padded to multiples of `pad`."""

    sizes: Sizes
    tp: int
    ep: int
    pad: int

    @property
    def ranks(self) -> int:
        return self.tp * self.ep

    @property
    def local_experts(self) -> int:
        return self.sizes.experts // self.ep

    @property
    def hidden(self) -> int:
        """The hidden size as it is stored."""
        return _up(self.sizes.hidden, self.pad)

    @property
    def intermediate(self) -> int:
        """A rank's intermediate size as it is stored."""
        return _up(self._groups_per_rank * self.sizes.group, self.pad)

    @property
    def _groups_per_rank(self) -> int:
        return -(-self.sizes.intermediate // self.sizes.group // self.tp)

    def share(self, tp_rank: int) -> slice:
        """The intermediate channels that a TP rank holds."""
        step = self._groups_per_rank * self.sizes.group
        return slice(min(tp_rank * step, self.sizes.intermediate), min((tp_rank + 1) * step, self.sizes.intermediate))

    def experts(self, ep_rank: int) -> range:
        """The experts that an EP rank holds, by their global numbers."""
        return range(ep_rank * self.local_experts, (ep_rank + 1) * self.local_experts)

    def rank(self, ep_rank: int, tp_rank: int) -> int:
        """Ranks of one EP group stand together."""
        return ep_rank * self.tp + tp_rank

    def refusals(self) -> list[str]:
        """Why these ranks cannot be, all reasons."""
        s = self.sizes
        why = []
        if s.experts % self.ep:
            why.append(f"--ep {self.ep}: {s.experts} experts do not divide; every rank holds equally many")
        if s.intermediate % s.group or s.hidden % s.group:
            why.append(f"the experts are {s.intermediate} x {s.hidden}, no multiples of their groups of {s.group}")
        elif self.share(self.tp - 1).start >= s.intermediate:
            groups = s.intermediate // s.group
            why.append(
                f"--tp {self.tp}: {s.intermediate} channels are {groups} groups of {s.group} that share a scale, and "
                f"the last rank would hold none; at most --tp {groups}"
            )
        return why

    def described(self) -> dict[str, int]:
        """The true sizes, then the stored ones, as record and config say them."""
        s = self.sizes
        return {
            "experts": s.experts, "hidden": s.hidden, "intermediate": s.intermediate, "group": s.group,
            "experts_per_rank": self.local_experts, "hidden_stored": self.hidden,
            "intermediate_stored_per_rank": self.intermediate,
        }  # fmt: skip

    def notes(self) -> list[str]:
        """What was padded and why, in words; nothing when nothing was."""
        s = self.sizes
        found = []
        held = [self.share(r).stop - self.share(r).start for r in range(self.tp)]
        if len(set(held)) > 1:
            found.append(
                f"{s.intermediate} channels in groups of {s.group} do not divide by {self.tp}: the ranks hold "
                f"{', '.join(map(str, held))}"
            )
        if any(length != self.intermediate for length in held):
            found.append(f"a rank's channels are padded with zeros to {self.intermediate}")
        if self.hidden != s.hidden:
            found.append(f"{s.hidden} hidden channels are padded with zeros to {self.hidden}")
        return found


def folder_of(rank: int, ranks: int) -> str:
    """The folder of a rank, or nothing when there is only one."""
    return f"rank-{rank:0{len(str(ranks - 1))}d}-of-{ranks}" if ranks > 1 else ""


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
