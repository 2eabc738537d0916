"""What a checkpoint holds, source or output, from headers alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from w4afp8 import families, formats
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert.lay_out import input_scale_specs
from w4afp8.convert.resources import human
from w4afp8.errors import FormatError
from w4afp8.families._inventory import format_of_experts, take_inventory
from w4afp8.families._spec import Family, Role, Sizes


def inspect_json(folder: Path, tensors: bool) -> dict[str, Any]:
    """Raises: CheckpointError when the headers are not what config.json promises."""
    with CheckpointReader(folder) as reader:
        family = families.of(reader.config)
        d = family.dimensions(reader.config)
        family = families.arranged(family, d, reader.specs)
        items = take_inventory(family, d, reader.specs, _activation_scales(family, d, reader))
        counts: Counter[tuple[str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for item in items.values():
            key = (item.expected.role.value, item.format.name if item.format else item.tensors[0].dtype.lower())
            counts[key] += 1
            sizes[key] += item.span_bytes
        found: dict[str, Any] = {
            "folder": str(folder),
            "family": family.name,
            "layers": d.layers,
            "dense_layers": d.dense_layers,
            "mtp_layers": d.mtp_layers,
            "experts": d.experts,
            "experts_per_token": d.experts_per_token,
            "swiglu": {"limit": d.swiglu.limit, "alpha": d.swiglu.alpha, "offset": d.swiglu.offset},
            "shards": len(reader.shards),
            "bytes": sum(spec.span_bytes for spec in reader.specs.values()),
            "roles": [
                {"role": r, "format": f, "count": n, "bytes": sizes[r, f]} for (r, f), n in sorted(counts.items())
            ],
        }
        if tensors:
            found["tensors"] = [
                {"name": s.name, "dtype": s.dtype, "shape": list(s.shape), "shard": s.shard}
                for s in reader.specs.values()
            ]
    return found


def _activation_scales(family: Family, d: Sizes, reader: CheckpointReader) -> dict[str, TensorSpec]:
    """The activation scales that the format of the experts adds."""
    try:
        form = format_of_experts(family, d, reader.specs)
    except FormatError:
        return {}  # the inventory says it of every expert
    if form is None or form.name not in formats.checkpoints():
        return {}
    rule = formats.checkpoint(form.name).input_scale
    if rule.within or not rule.indexed:
        return {}
    return {spec.name: spec for spec in input_scale_specs(family, d, formats.checkpoint(form.name))}


def show_inspection(console: Console, found: dict[str, Any]) -> None:
    """The same for people."""
    console.print(
        f"{found['family']}: {found['layers']} layers ({found['dense_layers']} dense, {found['mtp_layers']} MTP beside "
        f"them), {found['experts']} experts, {found['experts_per_token']} per token; {human(found['bytes'])} in "
        f"{found['shards']} shards",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (("what", False), ("format", False), ("count", True), ("size", True)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for line in found["roles"]:
        marked = "bold" if line["role"] == Role.EXPERT.value else None
        table.add_row(line["role"], line["format"], f"{line['count']:,}", human(line["bytes"]), style=marked)
    console.print(table)
    for tensor in found.get("tensors", ()):
        console.print(f"{tensor['name']}  {tensor['dtype']} {tensor['shape']}  {tensor['shard']}", soft_wrap=True)
