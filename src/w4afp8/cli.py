"""The command line: gathers the commands, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

import click

from w4afp8 import __version__, commands
from w4afp8.commands._shared import ERR
from w4afp8.errors import Stopped, W4AFP8Error

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="w4afp8")
def cli() -> None:
    """Turn a DeepSeek-class FP8 checkpoint into a 4-bit checkpoint for Hopper GPUs, and prove it."""


for command in commands.every():
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code (docs/exit-codes.md)."""
    sys.exit(code_of(lambda: cli.main(args=arguments, prog_name="w4afp8", standalone_mode=False)))


def code_of(command: Callable[[], Any]) -> int:
    """The exit code of a command; what went wrong is said on standard error, without a traceback."""
    try:
        command()
    except Stopped as stopped:
        ERR.print(str(stopped), markup=False, soft_wrap=True)
        return stopped.exit_code
    except W4AFP8Error as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as usage:
        usage.show()
        return usage.exit_code
    except (KeyboardInterrupt, click.Abort):
        ERR.print("interrupted; what was finished is kept, run the same command to go on")
        return INTERRUPTED
    except OSError as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(_of_the_system(error), markup=False, soft_wrap=True)
        return 4
    except MemoryError:
        ERR.print("error: out of memory; lower calibration.tokens (quantize) or --jobs (convert)", style="bold red")
        return 4
    except RuntimeError as error:
        if not _is_full_gpu(error):
            raise
        ERR.print("error:", style="bold red", end=" ")
        said = str(error).partition("\n")[0].rstrip(".")
        ERR.print(f"{said}; free the GPU of other programs, or ask for less", markup=False, soft_wrap=True)
        return 4
    return 0


def _of_the_system(error: OSError) -> str:
    """What the system refused, and what to do: to a place that cannot be written no second run gets further."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; give another directory, or permission for this one"
    return f"{error}; what was finished is kept, run the same command to go on"


def _is_full_gpu(error: RuntimeError) -> bool:
    """Whether torch found no memory on the GPU; a torch that was never imported raised nothing."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


if __name__ == "__main__":
    main()
