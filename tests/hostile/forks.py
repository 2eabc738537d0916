"""A process that has imported the tool and run nothing: it forks a child per command, with little memory and time.

Forked from the tests themselves, a child would inherit torch's thread pool in a state that it cannot always renew.
Reads a line of JSON per command, {"words": [...], "said": PATH}; answers with its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MOST_BYTES = 1 << 30  # beside what the program has before it begins
SECONDS = 30
BROKEN = 111


class Forks:
    """The other end of the pipe."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self.requests, self.answers = requests, answers

    def run(self, words: list[str], said: Path) -> int:
        """The exit code of a command; its words are written to `said`, its output to out.txt beside it."""
        print(json.dumps({"words": words, "said": str(said)}), file=self.requests, flush=True)
        return int(self.answers.readline())


@contextmanager
def forks() -> Iterator[Forks]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # stacks of many threads count as memory too
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as serving:
        assert serving.stdin and serving.stdout
        yield Forks(serving.stdin, serving.stdout)
        serving.stdin.close()


def serve() -> None:
    """Whatever a command would import or compile is there before the first fork: a child only does its work."""
    import w4afp8

    for module in pkgutil.walk_packages(w4afp8.__path__, "w4afp8."):
        importlib.import_module(module.name)
    from w4afp8.report.write import template

    template()
    os.fsync = lambda descriptor: None  # a child may die, this machine does not
    gc.freeze()  # its pages are shared as long as nobody writes to them
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            run_command(request["words"], Path(request["said"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_command(words: list[str], said: Path) -> None:
    """Ends the process."""
    from w4afp8.cli import cli, code_of

    try:
        sys.stdout, sys.stderr = said.with_name("out.txt").open("w"), said.open("w", errors="backslashreplace")
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # what it may write to; reserved space is free
        limit = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        signal.alarm(SECONDS)
        code = code_of(lambda: cli.main(args=words, standalone_mode=False))
    except BaseException:
        traceback.print_exc()
        code = BROKEN
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
