"""A checkpoint's tensors with their meaning: every expected one exactly once, none without a role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError, FormatError, raise_all
from w4afp8.families._spec import SCALAR_SHAPES, VECTOR_DTYPES, Expected, Family, Role, Sizes
from w4afp8.formats._spec import WeightFormat

MOST_MISSING = 100_000  # that many missing tensors are still named; a config that promises more is of another model


@dataclass(frozen=True, slots=True)
class Item:
    """One expected matrix or vector, the format it stands in (None: a vector, stored as it is), and its tensors."""

    expected: Expected
    format: WeightFormat | None
    tensors: tuple[TensorSpec, ...]

    @property
    def span_bytes(self) -> int:
        return sum(spec.span_bytes for spec in self.tensors)


def take_inventory(
    family: Family,
    dimensions: Sizes,
    specs: Mapping[str, TensorSpec],
    extra: Mapping[str, TensorSpec] | None = None,
) -> dict[str, Item]:
    """Match the tensors of a checkpoint with what its config promises, from headers only.

    `extra` are numbers that a checkpoint format adds (activation scales), in any width and with or without an axis.
    Raises: CheckpointError listing every missing, unknown or misshapen tensor.
    """
    items: dict[str, Item] = {}
    problems: list[str] = []
    refuse_the_absurd(dimensions, len(specs))
    unknown = dict(specs)
    for expected in family.expected(dimensions).values():
        found = _tensors_of(expected, specs)
        if not found:
            if not expected.required:
                continue
            problems.append(f"{expected.name} is missing: expected a {expected.role} of {list(expected.shape)}")
            continue
        try:
            item = _match(expected, found)
        except FormatError as error:
            problems.append(str(error))
            for name in found:
                unknown.pop(name, None)
            continue
        items[expected.name] = item
        for spec in item.tensors:
            unknown.pop(spec.name, None)
    for name, wanted in (extra or {}).items():
        got = unknown.pop(name, None)
        if got is None:
            problems.append(f"{name} is missing: expected {wanted.dtype} {list(wanted.shape)}")
        elif not is_number(got):
            problems.append(f"{got}: expected {wanted.dtype} {list(wanted.shape)}")
    problems += [f"{spec} has no role in the family {family.name}" for spec in unknown.values()]
    raise_all(
        _shorten(problems), CheckpointError, f"the tensors are not those that config.json promises ({family.name})"
    )
    return items


def is_number(spec: TensorSpec) -> bool:
    """Whether a tensor is one real number, as tools write activation scales: F32 or 16 bits, [1] or []."""
    return spec.dtype in VECTOR_DTYPES and spec.shape in SCALAR_SHAPES


def format_of_experts(family: Family, sizes: Sizes, specs: Mapping[str, TensorSpec]) -> WeightFormat | None:
    """What the first routed expert stands in, decided by its tensors; None when there is no routed expert.

    Raises: FormatError when no format reads it.
    """
    refuse_the_absurd(sizes, len(specs))
    first = next((e for e in family.expected(sizes).values() if e.role is Role.EXPERT), None)
    if first is None:
        return None
    n, k = first.shape
    return formats.detect(first.stem, _tensors_of(first, specs), n, k, first.stack)


def refuse_the_absurd(d: Sizes, found: int) -> None:
    """A config may not make us name a billion tensors before we notice that they are not there.

    Raises: CheckpointError when it promises far more than the `found` tensors.
    """
    promised = d.all_layers + max(0, d.all_layers - d.dense_layers) * d.experts * 3
    if promised > 4 * found + MOST_MISSING:
        raise CheckpointError(
            f"config.json promises at least {promised:,} tensors ({d.all_layers:,} layers, {d.experts:,} experts), "
            f"the checkpoint holds {found:,}; the config is of another model"
        )


def _tensors_of(expected: Expected, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What is there under an expected name: a vector's one tensor, or all that any format gives a matrix.

    Nothing when no tensor holds codes: scales alone are no weight.
    """
    if not expected.matrix:
        return {expected.name: specs[expected.name]} if expected.name in specs else {}
    stem = expected.stem
    if not any(stem + suffix in specs for suffix in formats.carriers()):
        return {}
    return {name: specs[name] for name in (stem + suffix for suffix in formats.suffixes()) if name in specs}


def _match(expected: Expected, found: Mapping[str, TensorSpec]) -> Item:
    if not expected.matrix:
        spec = found[expected.name]
        shape = (expected.stack, *expected.shape) if expected.stack else expected.shape
        if spec.dtype not in expected.dtypes or spec.shape != shape:
            raise FormatError(f"{spec}: expected {' or '.join(expected.dtypes)} {list(shape)}")
        return Item(expected, None, (spec,))
    n, k = expected.shape
    fmt = formats.detect(expected.stem, found, n, k, expected.stack)
    return Item(expected, fmt, tuple(found[expected.stem + part.suffix] for part in fmt.parts))


def _shorten(problems: list[str], most: int = 40) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]
