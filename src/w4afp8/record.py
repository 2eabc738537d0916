"""The record that an output carries: what was done to it and what was measured, without a single time or path.

The same source, recipe and version give the same record, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from w4afp8 import _version
from w4afp8.checkpoint import atomic
from w4afp8.convert.plan import Plan
from w4afp8.convert.state import read_tensors, write_tensors
from w4afp8.families._spec import Role
from w4afp8.recipes._recipe import Recipe

RECORD_FOLDER = "w4afp8"
RECORD = "record.json"
INPUTS = "inputs.safetensors"


def write_record(
    folder: Path,
    plan: Plan,
    recipe: Recipe,
    fingerprint: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    state: Path,
) -> dict[str, Any]:
    """Write record.json and inputs.safetensors; the record."""
    inputs: dict[str, Tensor] = {}
    for unit in plan.units:
        path = state / f"{unit.name}.inputs"
        if path.exists():
            inputs |= read_tensors(path)
    write_tensors(folder / INPUTS, inputs)
    shards = {
        name: {k: v for k, v in s.items() if k != "mtime_ns"} for name, s in fingerprint["source"]["shards"].items()
    }
    record = {
        "tool": {"name": "w4afp8", "version": _version.__version__, "torch": fingerprint["tool"]["torch"]},
        "format": plan.target.name,
        "method": recipe.method.name,
        "recipe": recipe.model_dump(mode="json"),
        "source": {"model_type": plan.config.get("model_type"), "shards": shards},
        "calibration": fingerprint["calibration"],
        "mtp": plan.mtp.value,
        "mtp_layers": plan.dimensions.mtp_layers,
        "bits_per_weight": bits_per_weight(plan),
        "tensors_by_role": tensors_by_role(plan),
        "layers": [r["evidence"] for r in records.values() if r.get("evidence")],
        "digests": dict(sorted((k, v) for r in records.values() for k, v in r["digests"].items())),
    }
    atomic.write_json(folder / RECORD, record)
    return record


def bits_per_weight(plan: Plan) -> float:
    """Stored bits of the routed experts, scales included, per weight."""
    experts = [i for i in plan.inventory.values() if i.expected.role is Role.EXPERT]
    weights = sum(i.expected.shape[0] * i.expected.shape[1] * (i.expected.stack or 1) for i in experts)
    stored = sum(line.bytes_out for line in plan.roles if line.role == Role.EXPERT.value)
    return round(8 * stored / weights, 4) if weights else 0.0


def tensors_by_role(plan: Plan) -> dict[str, dict[str, Any]]:
    """The plan's table as JSON: role -> count, bytes and the format it stands in now."""
    roles: dict[str, dict[str, Any]] = {}
    for line in plan.roles:
        role = roles.setdefault(line.role, {"count": 0, "bytes_in": 0, "bytes_out": 0, "format": line.output_format})
        role["count"] += line.tensors
        role["bytes_in"] += line.bytes_in
        role["bytes_out"] += line.bytes_out
        if line.output_format not in role["format"].split(", "):
            role["format"] += f", {line.output_format}"
    return roles
