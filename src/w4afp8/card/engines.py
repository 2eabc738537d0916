"""How each engine that reads a format is started: the engines stand in the format's `read_by`."""

from __future__ import annotations

import re

from w4afp8 import formats
from w4afp8.errors import RecipeError
from w4afp8.formats._target import CheckpointFormat

COMMANDS = {
    "SGLang": "python -m sglang.launch_server --model-path {model} --tp GPUS",
    "TensorRT-LLM": "trtllm-serve {model} --tp_size GPUS",
    "vLLM": "vllm serve {model} --tensor-parallel-size GPUS",
}
TAGS = {"W4AFP8": ("int4", "fp8"), "MXFP4": ("mxfp4",)}  # scheme -> the Hub's words for codes and activations
CONDITION = " where "  # `SGLang where linears have 16 bits`: said, but no command is promised
RELEASES = re.compile(r"\(| >=|" + CONDITION)


def checkpoint(format_name: str | None) -> CheckpointFormat | None:
    """The checkpoint format of that name; None for one that is none of this program's."""
    try:
        return formats.checkpoint(format_name or "")
    except RecipeError:
        return None


def read_by(format_name: str | None) -> tuple[str, ...]:
    """The engines and releases that read this format; nothing for a format that this program does not know."""
    found = checkpoint(format_name)
    return tuple(found.read_by) if found else ()


def names(readers: tuple[str, ...]) -> list[str]:
    """The engines of `read_by` lines, each once; those that read it under a condition are left out."""
    plain = (RELEASES.split(line)[0] for line in readers if CONDITION not in line)
    return list(dict.fromkeys(name.strip() for line in plain for name in line.split(",")))


def commands(readers: tuple[str, ...], model: str) -> list[tuple[str, str]]:
    """(engine, the command that serves `model`); GPUS stands for the number of GPUs."""
    named = names(readers)
    return [(name, command.format(model=model)) for name, command in COMMANDS.items() if name in named]


def tags(format_name: str | None) -> tuple[str, ...]:
    """The Hub's tags for what experts and their inputs are; nothing for a format without 4-bit experts."""
    found = checkpoint(format_name)
    return TAGS.get(found.scheme, ()) if found and found.expert_weight.bits == 4 else ()


def activation_scales(format_name: str | None) -> tuple[str, str]:
    """What becomes of calibration's activation scales, 'read', 'kept', 'none' or 'unknown'; the file of kept ones."""
    found = checkpoint(format_name)
    if found is None:
        return "unknown", ""
    scale = found.input_scale
    if scale.indexed or scale.within:
        return "read", ""
    return ("kept", scale.file) if scale.file else ("none", "")


def has_scales(format_name: str) -> bool:
    """Whether a weight of the format is more than one tensor; so it is where this program does not know the format."""
    return format_name not in formats.names() or len(formats.get(format_name).parts) > 1


def bits(format_names: str) -> str:
    """'16 and 32' of 'bf16, f32'; formats that are none of ours are plain dtypes named by their width."""
    found = []
    for name in filter(None, format_names.split(", ")):
        if name in formats.names():
            found.append(str(formats.get(name).bits))
        else:
            width = "".join(filter(str.isdigit, name))
            found.append(width or "unknown")
    return " and ".join(dict.fromkeys(found)) or "unknown"
