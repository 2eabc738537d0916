"""What a checkpoint holds, source or output, from headers alone."""

from __future__ import annotations

import re
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
        said = reader.config.get("quantization_config")
        if isinstance(said, dict) and said.get("quant_method") == families.LAYOUT_METHOD:
            return inspect_layout(reader, tensors)
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
            found["tensors"] = _listed(reader)
    return found


def inspect_layout(reader: CheckpointReader, tensors: bool) -> dict[str, Any]:
    """A directory in a runtime layout, or one rank of it: what its config says, and how large stacks and others are."""
    block = reader.config["quantization_config"]
    stacks = re.compile(r"\.(w13|w2)(_\w+)?$")
    lines: dict[tuple[str, str], list[int]] = {}
    for spec in reader.specs.values():
        found = stacks.search(spec.name)
        line = lines.setdefault((found[0][1:] if found else "carried", spec.dtype), [0, 0])
        line[0] += 1
        line[1] += spec.span_bytes
    return {
        "folder": str(reader.folder),
        "layout": block,
        "shards": len(reader.shards),
        "bytes": sum(spec.span_bytes for spec in reader.specs.values()),
        "ranks": sorted(path.name for path in reader.folder.glob("rank-*-of-*")),
        "roles": [{"role": r, "format": f, "count": n, "bytes": b} for (r, f), (n, b) in sorted(lines.items())],
        **({"tensors": _listed(reader)} if tensors else {}),
    }


def _listed(reader: CheckpointReader) -> list[dict[str, Any]]:
    return [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape), "shard": s.shard} for s in reader.specs.values()]


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


def _layout_line(found: dict[str, Any]) -> str:
    block = found["layout"]
    of = block["tensor_parallel"] * block["expert_parallel"]
    rank = f"tp {block['tensor_parallel']} x ep {block['expert_parallel']}, "
    if "rank" in block:
        rank = f"rank {block['rank']} of {of}, experts {block['experts'][0]}..{block['experts'][1] - 1}, "
    beside = f"; experts in {', '.join(found['ranks'])}" if found["ranks"] else ""
    return (
        f"layout {block['layout']} version {block['layout_version']}, read by {block['read_by']}: {rank}"
        f"w13 is {' then '.join(block['w13'])}; {human(found['bytes'])} in {found['shards']} shards{beside}\n"
        f"canonical checkpoint {block['canonical_sha256']} (w4afp8 convert --layout canonical restores it)"
    )


def show_inspection(console: Console, found: dict[str, Any]) -> None:
    """The same for people."""
    console.print(
        _layout_line(found) if "layout" in found else
        f"{found['family']}: {found['layers']} layers ({found['dense_layers']} dense, {found['mtp_layers']} MTP beside "
        f"them), {found['experts']} experts, {found['experts_per_token']} per token; {human(found['bytes'])} in "
        f"{found['shards']} shards",
        soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (("what", False), ("format", False), ("count", True), ("size", True)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for line in found["roles"]:
        marked = "bold" if line["role"] == Role.EXPERT.value else None
        table.add_row(line["role"], line["format"], f"{line['count']:,}", human(line["bytes"]), style=marked)
    console.print(table)
    for tensor in found.get("tensors", ()):
        console.print(f"{tensor['name']}  {tensor['dtype']} {tensor['shape']}  {tensor['shard']}", soft_wrap=True)
