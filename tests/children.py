"""Runs in forked children that kill themselves, or are killed, at a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from w4afp8.errors import ResumeError

REFUSED = 18  # and for any other ResumeError
FINISHED = 17  # a child's exit code for "this output is finished already"
# What a run does to the disk.  A child counts them and kills itself before the n-th.
STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open", "pwrite")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Countdown:
    """Kills its process before the n-th step on the disk; counts them when n is None."""

    def __init__(self, kill_before: int | None) -> None:
        self.seen, self.kill_before = 0, kill_before

    def install(self) -> None:
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            writes = function.__name__ != "open" or (len(arguments) > 1 and arguments[1] & os.O_CREAT)
            if writes:
                if self.seen == self.kill_before:
                    die()
                self.seen += 1
            return function(*arguments, **named)

        return counted


def in_child(work: Callable[[], int]) -> int:
    """Fork, so that torch is imported once; the child's wait status."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # renews the thread pool that the fork left behind
            code = work()
        except ResumeError as error:
            code = FINISHED if "holds a finished checkpoint" in str(error) else REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
