"""Every way this program refuses, each with the exit code that a script can act on.

Exit codes (documented in docs/exit-codes.md, checked by a test):
0 ok, 2 usage or recipe, 3 source checkpoint, 4 resources, 5 calibration coverage, 6 numeric gate,
7 validation mismatch, 8 Hub or network, 75 stopped cleanly (run again to resume), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable


class W4AFP8Error(Exception):
    """The root. Its message says who, found, expected, next; `exit_code` is the process's."""

    exit_code = 1


class RecipeError(W4AFP8Error):
    """A recipe, an option or a name that means nothing here."""

    exit_code = 2


class CheckpointError(W4AFP8Error):
    """Bytes on disk that are not the checkpoint they claim to be."""

    exit_code = 3


class FormatError(CheckpointError):
    """Tensors that are present but do not mean what the format says they mean.

    `suffix` is that of the tensor which contradicts the others of its matrix, where one is known to.
    """

    def __init__(self, message: str, suffix: str = "") -> None:
        super().__init__(message)
        self.suffix = suffix


class ResourceError(W4AFP8Error):
    """Too little disk or memory for the plan."""

    exit_code = 4


class DeviceError(ResourceError):
    """No GPU, or not the one that the work needs."""


class CalibrationError(W4AFP8Error):
    """No text, too little text, or experts that no token reached."""

    exit_code = 5


class QuantizationError(W4AFP8Error):
    """Numbers that must not be written: NaN, infinity, zero scales, codes out of range."""

    exit_code = 6


class ValidationError(W4AFP8Error):
    """A checkpoint that does not do what it promises."""

    exit_code = 7


class HubError(W4AFP8Error):
    """The Hub or the network said no."""

    exit_code = 8


class KernelError(W4AFP8Error):
    """An argument that a kernel cannot take, named; never a CUDA fault."""

    exit_code = 2


class ResumeError(W4AFP8Error):
    """An unfinished output made from something else than what this run would use."""

    exit_code = 2


class Stopped(W4AFP8Error):
    """The user asked to stop; everything finished so far is on disk."""

    exit_code = 75


def raise_all(problems: Iterable[str], kind: type[W4AFP8Error], heading: str) -> None:
    """Raise one `kind` that lists every problem, or return when there is none."""
    listed = list(problems)
    if not listed:
        return
    if len(listed) == 1:
        raise kind(f"{heading}: {listed[0]}")
    raise kind(f"{heading}: {len(listed)} problems\n" + "\n".join(f"  - {p}" for p in listed))
