"""What names mean.  A public file here is a model family; `of(config)` finds the one that a config.json announces."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from w4afp8 import formats, registry
from w4afp8.errors import CheckpointError
from w4afp8.families._inventory import refuse_the_absurd
from w4afp8.families._spec import Dimensions, Family, Role, Sizes

# The quant_method of a directory in a runtime layout: no engine's, so that a loader of checkpoints refuses the bytes.
LAYOUT_METHOD = "w4afp8-layout"


@cache
def names() -> tuple[str, ...]:
    """Every model family."""
    return registry.names(sys.modules[__name__])


def get(name: str) -> Family:
    """The family of that name."""
    found: Family = registry.load(sys.modules[__name__], name, "model family").FAMILY
    return found


def of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint.  Raises: CheckpointError when no file here knows its `model_type`."""
    model_type = config.get("model_type")
    said = config.get("quantization_config")
    if isinstance(said, Mapping) and said.get("quant_method") == LAYOUT_METHOD:
        raise CheckpointError(
            f"the directory has the runtime layout {said.get('layout')}, whose stacks are no checkpoint's tensors; "
            "w4afp8 convert --layout canonical restores the checkpoint"
        )
    for name in names():
        if model_type in get(name).model_types:
            return get(name)
    known = ", ".join(t for name in names() for t in get(name).model_types)
    raise CheckpointError(f"config.json: model_type is {model_type!r}; known: {known}")


def arranged(family: Family, sizes: Sizes, names: Collection[str]) -> Family:
    """The family as a checkpoint with these tensors arranges its experts: sharing tensors, or a name each."""
    if family.apart is None:
        return family
    refuse_the_absurd(sizes, len(names))
    own = next(item.stem for item in family.apart(sizes).values() if item.role is Role.EXPERT)
    if any(own + suffix in names for suffix in formats.carriers()):
        return replace(family, expected=family.apart, apart=None)
    return family


def decodable(family: Family, config: Mapping[str, Any]) -> Dimensions:
    """The hyper-parameters of a model that `model/` can run.

    Raises: CheckpointError for a family whose forward pass is not written: its checkpoints convert, no more.
    """
    found = family.dimensions(config)
    if not isinstance(found, Dimensions):
        raise CheckpointError(
            f"family {family.name}: there is no forward pass of it here, so it can be neither calibrated nor compared; "
            "w4afp8 convert moves its weights between formats"
        )
    return found
