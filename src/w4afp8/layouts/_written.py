"""The small files of a directory in a layout: indexes and configs, byte for byte as they must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.layouts._record import Record
from w4afp8.layouts._split import Split


def config(record: Record, canonical: Mapping[str, Any], split: Split, rank: int | None = None) -> dict[str, Any]:
    """config.json: the canonical one with the layout in place of its quantization; of one rank, which it is."""
    block = dict(record.block)
    if rank is not None:
        ep_rank, tp_rank = divmod(rank, split.tp)
        held = split.experts(ep_rank)
        block |= {"rank": rank, "tp_rank": tp_rank, "ep_rank": ep_rank, "experts": [held.start, held.stop]}
    return {**canonical, "quantization_config": block}


def index(specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """model.safetensors.index.json of these tensors."""
    listed = list(specs)
    return {
        "metadata": {"total_size": sum(spec.span_bytes for spec in listed)},
        "weight_map": {spec.name: spec.shard for spec in sorted(listed, key=lambda s: s.name)},
    }
