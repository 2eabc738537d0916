"""Which GPU serves: what the commands that need a Hopper ask before they start."""

from __future__ import annotations

import torch

from w4afp8.errors import DeviceError, RecipeError
from w4afp8.kernels import build

HOPPER = (9, 0)
CHOICES = ("auto", "cuda", "cpu")


def require_hopper(what: str) -> None:
    """Raises: DeviceError, naming what was found and what `what` needs; compiles the kernels where nvcc is found."""
    if not torch.cuda.is_available():
        raise DeviceError(
            f"{what}: found no CUDA device (torch {torch.__version__}), expected a Hopper GPU (compute capability "
            "9.0), its driver and a torch built for CUDA; `w4afp8 doctor` says what this machine lacks"
        )
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) != HOPPER:
        raise DeviceError(
            f"{what}: found {torch.cuda.get_device_name()} (compute capability {major}.{minor}), expected a Hopper GPU "
            "(9.0): the kernels are written for sm_90a"
        )
    if reason := build.why_not():
        raise DeviceError(
            f"{what}: found {torch.cuda.get_device_name()}, but its kernels are not to be had: {reason}; "
            "`w4afp8 doctor --build` compiles them where nvcc is"
        )


def resolve(choice: str, what: str) -> torch.device:
    """cpu, cuda (a Hopper GPU or a refusal), or auto: cuda where a Hopper GPU and a compiled library are, else cpu.

    Raises: RecipeError for another word, DeviceError for `cuda` without a Hopper GPU.
    """
    if choice not in CHOICES:
        raise RecipeError(f"--device {choice}: expected one of {', '.join(CHOICES)}")
    if choice == "cuda":
        require_hopper(what)
    on_gpu = choice == "cuda" or (choice == "auto" and _is_ready())
    return torch.device("cuda" if on_gpu else "cpu")


def _is_ready() -> bool:
    there = torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER
    return there and build.library() is not None and build.load()


def served_by(device: torch.device) -> str:
    """Who multiplies there, in words."""
    if device.type == "cpu":
        return f"plain torch {torch.__version__} on the CPU"
    return f"sm_90a kernels on {torch.cuda.get_device_name(device)}, torch {torch.__version__}"
