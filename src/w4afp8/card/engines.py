"""How each engine that reads a format is started.  An engine is known by the first word of the format's `read_by`."""

from __future__ import annotations

from w4afp8 import formats
from w4afp8.errors import RecipeError
from w4afp8.formats._spec import AwareWeight, GroupWeight, MicroWeight

COMMANDS = {
    "SGLang": "python -m sglang.launch_server --model-path {model} --tp GPUS",
    "TensorRT-LLM": "trtllm-serve {model} --tp_size GPUS",
    "vLLM": "vllm serve {model} --tensor-parallel-size GPUS",
}

ELEMENTS: dict[type, tuple[str, ...]] = {GroupWeight: ("int4", "fp8"), AwareWeight: ("int4", "fp8"),
                                         MicroWeight: ("mxfp4",)}  # fmt: skip


def read_by(format_name: str | None) -> tuple[str, ...]:
    """The engines and releases that read this format; nothing for a format that this program does not write."""
    try:
        return tuple(formats.checkpoint(format_name or "").read_by)
    except RecipeError:
        return ()


def commands(engines: tuple[str, ...], model: str) -> list[tuple[str, str]]:
    """(engine, the command that serves `model`); GPUS stands for the number of GPUs."""
    return [
        (name, command.format(model=model))
        for name, command in COMMANDS.items()
        if any(engine.split()[0] == name for engine in engines)
    ]


def element_types(format_name: str | None) -> tuple[str, ...]:
    """The Hub's tags for what the experts' codes and their inputs are; nothing for a format that is none of ours."""
    if format_name not in formats.checkpoints():
        return ()
    return ELEMENTS.get(formats.checkpoint(format_name).expert_weight.form, ())


def scales_nobody_reads(format_name: str | None) -> str | None:
    """The file of static activation scales that this format's engines leave alone; None where they read them."""
    if format_name not in formats.checkpoints():
        return None
    found = formats.checkpoint(format_name).input_scale
    return None if found.indexed else found.file


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
