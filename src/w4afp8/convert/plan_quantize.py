"""What quantize decides before anything is placed: which matrices become 4-bit, what becomes of the MTP layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.lay_out import input_scale_specs, is_recoded, lay_out, packed, suited
from w4afp8.convert.plan import Plan
from w4afp8.errors import FormatError, QuantizationError, RecipeError, raise_all
from w4afp8.families._inventory import Item, format_of_experts
from w4afp8.families._spec import Dimensions, Family, Role
from w4afp8.formats._spec import AwareWeight, GroupWeight
from w4afp8.formats._target import CheckpointFormat
from w4afp8.recipes._recipe import Mtp, Recipe


def make_plan(
    family: Family,
    dimensions: Dimensions,
    config: Mapping[str, Any],
    inventory: Mapping[str, Item],
    recipe: Recipe,
) -> Plan:
    """Decide every output tensor.

    Raises: RecipeError when the recipe asks for what the output format's engines cannot load.
    """
    target = suited(formats.target(recipe.output.format), family)
    if target.scheme != recipe.scheme:
        raise RecipeError(
            f"scheme: {recipe.scheme} and output.format: {target.name} do not go together; {target.name} holds "
            f"{target.scheme}"
        )
    mtp = _decide_mtp(recipe.mtp, target, dimensions)
    new_config = family.without_mtp(config) if mtp is Mtp.DROP else dict(config)
    kept = dimensions if mtp is not Mtp.DROP else replace(dimensions, mtp_layers=0)
    items = {name: item for name, item in inventory.items() if item.expected.layer is None or
             item.expected.layer < kept.all_layers}  # fmt: skip
    native = set(range(kept.layers, kept.all_layers)) if mtp is Mtp.NATIVE else set()
    recoded = frozenset(name for name, item in items.items() if is_recoded(item, target))
    becomes = dict.fromkeys(_quantized_names(items, recipe, target, native), target.expert_weight)
    becomes |= dict.fromkeys(recoded, target.linear_weight)
    return lay_out(
        family, kept, new_config, items, target, becomes=becomes, made=packed(items, becomes), recoded=recoded, mtp=mtp,
        input_scales=input_scale_specs(family, kept, target, native), shard_bytes=int(recipe.output.shard_gb * 1e9),
    )  # fmt: skip


def refuse_quantized(family: Family, d: Dimensions, specs: Mapping[str, TensorSpec], format_name: str) -> None:
    """Raises: RecipeError for a source whose experts are int4, or stand in the very numbers that were asked for.

    Int4 in groups of 32 is let through: it is what Kimi-K2-Thinking was trained to, so there is no other original, and
    groups of 128 hold it only by luck.
    """
    try:
        form = format_of_experts(family, d, specs)
    except FormatError:
        return  # the inventory names every tensor that is none
    target = formats.target(format_name).expert_weight
    if form is None or form.form not in (GroupWeight, AwareWeight, target.form):
        return
    raise RecipeError(
        f"the experts stand in {form.name}, {form.bits} bits already: rounding them again adds a second error to the "
        f"first; move them to another format with w4afp8 convert, or quantize the original checkpoint to {target.name}"
    )


def _decide_mtp(asked: Mtp, target: CheckpointFormat, d: Dimensions) -> Mtp:
    if d.mtp_layers == 0:
        return Mtp.QUANTIZE if asked is Mtp.AUTO else asked
    if asked is Mtp.AUTO:
        return Mtp.NATIVE if target.partial_experts else Mtp.QUANTIZE
    if asked is Mtp.NATIVE and target.partial_experts is None:
        raise RecipeError(
            f"mtp: native keeps the experts of layer {d.layers} in the source's format, but engines that read "
            f"{target.name} load every expert as int4; use mtp: quantize or mtp: drop"
        )
    return asked


def _quantized_names(
    items: Mapping[str, Item], recipe: Recipe, target: CheckpointFormat, native: set[int]
) -> frozenset[str]:
    """The matrices that become 4-bit.  Raises: RecipeError naming what the output format cannot hold."""
    matrices = {item.expected.stem: item for item in items.values() if item.expected.matrix}
    chosen = recipe.chosen(matrices)
    problems = [
        f"{stem} is a {matrices[stem].expected.role}; {target.name} holds only routed experts in 4 bits"
        for stem in sorted(chosen)
        if matrices[stem].expected.role is not Role.EXPERT
    ]
    experts = {s for s, item in matrices.items() if item.expected.role is Role.EXPERT}
    must = {s for s in experts if matrices[s].expected.layer not in native}
    left = sorted(must - chosen)
    if left and target.partial_experts is None:
        problems.append(
            f"{len(left)} of {len(must)} expert matrices are not targeted, first {left[0]}; engines that read "
            f"{target.name} load every routed expert as int4, so all or none"
        )
    for stem in sorted(chosen & must):
        n, k = matrices[stem].expected.shape
        try:
            target.expert_weight.specs(stem, n, k)
        except QuantizationError as error:
            problems.append(f"{stem} is [{n}, {k}]; {target.name}: {error}")
    raise_all(problems[:20], RecipeError, f"the recipe's targets do not fit {target.name}")
    return frozenset(matrices[stem].expected.name for stem in chosen & must)
