"""The last step: side files, activation scales, the index, and config.json at the very end.

A directory without config.json and index is unfinished by definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.reader import CONFIG, INDEX, SINGLE, CheckpointReader, refuse_link_out
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.plan import Plan
from w4afp8.families._spec import PROJECTIONS

# Files of the source that the output has its own of.
REPLACED = (CONFIG, INDEX, SINGLE, "hf_quant_config.json", "quant_cfg.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


def side_files(folder: Path) -> list[str]:
    """Everything of a checkpoint that is neither weights nor rewritten: tokenizer, templates, code, licence.

    Raises: CheckpointError for a link to somewhere else on this machine: its content would be published.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and path.suffix not in WEIGHTS and relative.as_posix() not in REPLACED:
            refuse_link_out(folder, path)
            found.append(relative.as_posix())
    return found


def publish(out: Path, plan: Plan, reader: CheckpointReader, input_scales: Mapping[int, Mapping[str, float]]) -> None:
    """Make the output a checkpoint.  `input_scales`: layer -> {"gate_up", "down"} -> scale."""
    _write_input_scales(out, plan, input_scales)
    finish(out, plan, reader, side_files(reader.folder))


def finish(out: Path, plan: Plan, reader: CheckpointReader, copied: Iterable[str]) -> None:
    """Everything but tensors: the files `copied` from the source, the format's own, the index and the config."""
    copy_side_files(out, plan, reader, copied)
    for name, content in last_files(plan).items():
        atomic.write_json(out / name, content)


def copy_side_files(out: Path, plan: Plan, reader: CheckpointReader, copied: Iterable[str]) -> list[str]:
    """The files `copied` from the source and the format's own; their names."""
    written = []
    for name in copied:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.copy_file(reader.folder / name, target)
        written.append(name)
    for name, content in plan.target.side_files(plan.config).items():
        atomic.write_json(out / name, content)
        written.append(name)
    return written


def last_files(plan: Plan) -> dict[str, dict[str, Any]]:
    """What makes the directory a checkpoint, in the order in which it is written."""
    index = {"metadata": {"total_size": plan.total_bytes}, "weight_map": plan.weight_map}
    return {INDEX: index, CONFIG: plan.config}


def _write_input_scales(out: Path, plan: Plan, input_scales: Mapping[int, Mapping[str, float]]) -> None:
    """One number per layer and GEMM for all its experts: outputs then do not depend on which experts a rank holds."""
    if not plan.input_scales:
        return
    rule, d = plan.target.input_scale, plan.dimensions
    with ShardWriter(out / rule.file, plan.input_scales) as writer:
        for layer, scales in sorted(input_scales.items()):
            for expert in range(d.experts):
                for projection in PROJECTIONS:
                    value = scales["down" if projection == "down_proj" else "gate_up"]
                    name = rule.tensor_name(plan.family.expert(d, layer, expert), projection)
                    writer.put(name, torch.tensor([value], dtype=torch.float32))
