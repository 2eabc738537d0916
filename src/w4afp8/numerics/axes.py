"""Axes split, permuted and joined as a line of text says, in einops' notation: `"e (a b) c -> e b (a c)"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor


def rearrange(x: Tensor, pattern: str, sizes: Mapping[str, int]) -> Tensor:
    """`x` with its axes moved; in each group at most one axis may be missing from `sizes`."""
    split, order, joined = plan(x.shape, pattern, sizes)
    return x.reshape(split).permute(order).reshape(joined)


def backwards(pattern: str) -> str:
    """The pattern of the inverse."""
    before, after = pattern.split("->")
    return f"{after.strip()} -> {before.strip()}"


def plan(shape: Sequence[int], pattern: str, sizes: Mapping[str, int]) -> tuple[list[int], list[int], list[int]]:
    """Sizes after splitting, the order of the axes, sizes after joining."""
    before, after = (groups(side) for side in pattern.split("->"))
    split: list[int] = []
    for group, length in zip(before, shape, strict=True):
        known = prod(sizes.get(axis, 1) for axis in group)
        split += [sizes.get(axis, length // known) for axis in group]
    names = [axis for group in before for axis in group]
    size = dict(zip(names, split, strict=True))
    order = [names.index(axis) for group in after for axis in group]
    return split, order, [prod(size[axis] for axis in group) for group in after]


def groups(side: str) -> list[list[str]]:
    """`"e (a b) c"` -> `[["e"], ["a", "b"], ["c"]]`."""
    found: list[list[str]] = []
    inside = False
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            found.append([])
        elif token != ")":
            found[-1].append(token) if inside else found.append([token])
        inside = token == "(" or (inside and token != ")")
    return found
