"""Everything that is no routed expert: the source's bytes, or a fold that leaves the function as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.families._inventory import Item
from w4afp8.families._spec import Role
from w4afp8.formats._spec import BlockWeight, PlainWeight
from w4afp8.model.router import route
from w4afp8.validate.findings import Check, Progress
from w4afp8.validate.sides import Inputs, Side, norm_fold

# A fold rounds the norm and the router to bfloat16 again: 2^-9 relative each, 2^-8 together, twice that for luck.
ROUTER_FOLD_ERROR = 2.0**-7
# A folded shared expert is rounded to e4m3 again: 2^-4 / sqrt(3) = 3.6 % of each number at worst (rms).
SHARED_FOLD_ERROR = 0.05
ROUTING_MOVED = 0.05  # share of recorded tokens; near ties turn on the last bit of a bfloat16 router

FOLDED = ("mlp.gate.weight", "mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight")
NORM = "post_attention_layernorm.weight"


def folded_layers(record: Mapping[str, Any]) -> set[int]:
    """Layers of which the record says that a norm fold was kept."""
    return {int(entry["layer"]) for entry in record.get("layers", []) if (entry.get("fold") or {}).get("kept")}


def new_checks() -> tuple[Check, Check]:
    """Both checks before they ran."""
    return (
        Check("carried", "every tensor that is no routed expert has the source's bytes, or is listed as folded"),
        Check("folds", "a folded norm and its router and shared expert compute what the source computes"),
    )


def check_carried(source: Side, output: Side, record: Mapping[str, Any], on_progress: Progress) -> tuple[Check, Check]:
    """Bit-identity of every tensor that no fold touched, and the function of those that one did."""
    same, folds = new_checks()
    layers = folded_layers(record)
    items = [item for item in output.weights.inventory.values() if item.expected.role != Role.EXPERT]
    for done, item in enumerate(items):
        on_progress("carried", done, len(items))
        layer = item.expected.layer
        local = item.expected.name.removeprefix(f"model.layers.{layer}.")
        if _is_recoded(source, item):
            same.examined += 1
            if local not in FOLDED or layer not in layers:
                _compare_numbers(source, output, item.expected.name, same)
            continue
        for spec, name in zip(item.tensors, _names_in_source(source, item), strict=True):
            same.examined += 1
            before = source.reader.specs.get(name)
            if before is None or (before.dtype, before.shape) != (spec.dtype, spec.shape):
                same.blame(
                    spec.name, f"{spec.dtype} {list(spec.shape)}",
                    f"{before.dtype} {list(before.shape)}" if before else "no such tensor, as in the source",
                    "it must be carried as it is",
                )  # fmt: skip
            elif local not in (NORM, *FOLDED) or layer not in layers:
                _compare_bytes(source, output, spec.name, name, same)
    for layer in sorted(layers):
        _check_fold(source, output, layer, folds)
    on_progress("carried", len(items), len(items))
    if not layers:
        folds.idle = "no layer is folded"
    return same, folds


def _is_recoded(source: Side, item: Item) -> bool:
    """Whether a 16-bit matrix of the source stands in FP8 blocks here, because the output's engines read it so."""
    before = source.weights.inventory.get(item.expected.name)
    if before is None or before.format is None or item.format is None:
        return False
    return before.format.form is PlainWeight and item.format.form is BlockWeight


def _names_in_source(source: Side, item: Item) -> list[str]:
    """Where the source has the same numbers: two formats of one form name their tensors differently."""
    before = source.weights.inventory.get(item.expected.name)
    if before is not None and before.format and item.format and before.format.form is item.format.form:
        return [spec.name for spec in before.tensors]
    return [spec.name for spec in item.tensors]


def _compare_numbers(source: Side, output: Side, name: str, check: Check) -> None:
    before, after = source.weights.matrix(name), output.weights.matrix(name)
    error = float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before).clamp_min(1e-30))
    if not error <= SHARED_FOLD_ERROR:
        check.blame(
            name, f"off by {error:.2%}", f"the source's numbers rounded to e4m3, at most {SHARED_FOLD_ERROR:.0%} off",
            "quantize the source again",
        )  # fmt: skip


def _compare_bytes(source: Side, output: Side, name: str, source_name: str, check: Check) -> None:
    position = 0
    for ours, theirs in zip(output.reader.read_bytes(name), source.reader.read_bytes(source_name), strict=True):
        if not torch.equal(ours, theirs):
            at = position + int((ours != theirs).nonzero()[0])
            check.blame(
                name, f"a byte that differs, number {at}", "the source's bytes: no fold of it is recorded",
                "copy it from the source again",
            )  # fmt: skip
            return
        position += len(ours)


def _check_fold(source: Side, output: Side, layer: int, check: Check) -> None:
    fold_H = norm_fold(source, output, layer)
    for local in FOLDED:
        name = f"model.layers.{layer}.{local}"
        if name not in output.weights.inventory:
            check.blame(name, "nothing to compare", "it", "the record lists a fold in a layer without experts")
            continue
        check.examined += 1
        limit = ROUTER_FOLD_ERROR if local == FOLDED[0] else SHARED_FOLD_ERROR
        before, after = source.weights.matrix(name), output.weights.matrix(name).mul_(fold_H)
        error_K = _column_errors(after, before)
        total = float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))
        worst = int(error_K.argmax())
        if not total <= limit:
            check.blame(
                name, f"norm * W off by {total:.2%}, most in column {worst} ({error_K[worst]:.2%})",
                f"at most {limit:.2%} of the source's norm * W", "the fold of this layer is wrong: quantize it again",
            )  # fmt: skip
        elif float(error_K[worst]) > 4 * limit:
            check.blame(
                name, f"norm * W off by {error_K[worst]:.2%} in column {worst}", f"at most {4 * limit:.2%} in each",
                "the fold of this channel is wrong: quantize the layer again",
            )  # fmt: skip


def _column_errors(found_NK: Tensor, expected_NK: Tensor) -> Tensor:
    difference = torch.linalg.vector_norm(found_NK - expected_NK, dim=0)
    size = torch.linalg.vector_norm(expected_NK, dim=0)
    return torch.where(size > 0, difference / size, difference)


def routing_moved(source: Side, output: Side, layer: int, inputs: Inputs, fold_H: Tensor, check: Check) -> float | None:
    """Share of the recorded tokens whose set of experts a fold changed; None without a fold."""
    if bool((fold_H == 1).all()) or not inputs.recorded:
        return None
    chosen = []
    for side, x_TH in ((source, inputs.x), (output, inputs.x * fold_H)):
        weight = side.weights.matrix(f"model.layers.{layer}.mlp.gate.weight")
        routing = route(x_TH, weight, side.vector(layer, "mlp.gate.e_score_correction_bias"), side.d)
        chosen.append(routing.experts_TK.sort(-1).values)
    moved = float((chosen[0] != chosen[1]).any(-1).float().mean())
    if moved > ROUTING_MOVED:
        check.blame(
            f"model.layers.{layer}.mlp.gate.weight", f"{moved:.1%} of the recorded tokens routed elsewhere",
            f"at most {ROUTING_MOVED:.0%}", "the fold of this layer costs more than it gives: quantize without it",
        )  # fmt: skip
    return moved
