"""What bytes mean.  A public file here is a weight format, and the file's name is the format's name.

Two kinds, told apart by what they define:
- WEIGHT: how one weight matrix stands in tensors (`_spec.WeightFormat`);
- CHECKPOINT: what a finished checkpoint directory promises its engine (`_target.CheckpointFormat`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from w4afp8 import registry
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import FormatError, RecipeError
from w4afp8.formats._spec import WeightFormat
from w4afp8.formats._target import CheckpointFormat


@cache
def names() -> tuple[str, ...]:
    """Every weight format."""
    return registry.names(sys.modules[__name__])


@cache
def get(name: str) -> WeightFormat:
    """The weight format of that name.  Raises: RecipeError when there is none."""
    found: WeightFormat = registry.load(sys.modules[__name__], name, "format").WEIGHT
    return found


def target(name: str) -> CheckpointFormat:
    """The checkpoint format that `quantize` writes.  Raises: RecipeError when it writes no such."""
    if name not in targets():
        registry.load(sys.modules[__name__], name, "format")
        raise RecipeError(f"format {name!r} can be read but is no output; outputs: {', '.join(targets())}")
    return checkpoint(name)


def targets() -> tuple[str, ...]:
    """Every checkpoint format that `quantize` writes."""
    return tuple(name for name in checkpoints() if checkpoint(name).quantizable)


def checkpoint(name: str) -> CheckpointFormat:
    """The checkpoint format of that name.  Raises: RecipeError when the format is of single weights only."""
    found = getattr(registry.load(sys.modules[__name__], name, "format"), "CHECKPOINT", None)
    if found is None:
        raise RecipeError(f"format {name!r} is no checkpoint format; known: {', '.join(checkpoints())}")
    return found  # type: ignore[no-any-return]


def written() -> tuple[str, ...]:
    """Every checkpoint format that `convert` writes."""
    return tuple(name for name in checkpoints() if checkpoint(name).written)


@cache
def checkpoints() -> tuple[str, ...]:
    """Every format that whole checkpoints convert between."""
    here = sys.modules[__name__]
    return tuple(name for name in names() if hasattr(registry.load(here, name, "format"), "CHECKPOINT"))


def announced(config: Mapping[str, Any]) -> CheckpointFormat | None:
    """The checkpoint format that a config.json says it is, as far as it can be told from there; None for none of ours.

    What a directory really holds is decided by its tensors (`detect`).
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return None
    for name in checkpoints():
        target = checkpoint(name)
        said = [target.quantization_config(config), *([target.plain_config(config)] if target.plain_config else [])]
        if any(_marks(one) == _marks(found) for one in said if one):
            return target
    return None


def _marks(said: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells formats apart: the method, how scales are made, what the experts' group is."""
    groups = said.get("config_groups")
    first = groups.get("group_0") if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    experts = [weights.get(key) for key in ("num_bits", "type", "group_size")] if isinstance(weights, Mapping) else []
    return (said.get("quant_method"), said.get("quant_algo"), said.get("scale_fmt"), *experts)


@cache
def suffixes() -> tuple[str, ...]:
    """What any format appends to a weight's stem."""
    return tuple(sorted({part.suffix for name in names() for part in get(name).parts}))


@cache
def carriers() -> tuple[str, ...]:
    """What a tensor that holds a weight's codes may be called: without one of these there is no weight."""
    return tuple(sorted({get(name).parts[0].suffix for name in names()}))


def detect(stem: str, siblings: Mapping[str, TensorSpec], n: int, k: int, stack: int = 0) -> WeightFormat:
    """The format of the matrix [n, k], or stack of them, whose tensors begin with `stem`: dtypes and shapes say it.

    A config never does.  `siblings` are those tensors, by name.
    Raises: FormatError saying what each format missed.
    """
    refusals = []
    for name in names():
        candidate = get(name)
        why = candidate.refusal(stem, siblings, n, k, stack)
        if why is None:
            return candidate
        refusals.append(f"{name}: {why}")
    shape = [stack, n, k] if stack else [n, k]
    found = ", ".join(str(spec) for spec in siblings.values())
    raise FormatError(f"{found}: expected a matrix {shape}, no format reads it\n  " + "\n  ".join(refusals))
