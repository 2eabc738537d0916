"""Measurements in a process of their own: one that fails or hangs is started anew, and the run goes on.

A line of JSON on the process's input, [method, argument, ...], is a call of what it serves; the answer is a line of
JSON on its output: {"said": result} or {"failed": why}.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 100.0  # for one answer: the first one imports torch, a peer may compile


class CellError(Exception):
    """A cell that was not measured."""


def serve(what: Any) -> None:
    """Answer until there is no more input."""
    # What a peer or a compiler prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        verb, *words = json.loads(line)
        try:
            said = {"said": getattr(what, verb)(*words)}
        except Exception as error:  # told to who asked, who starts this process anew
            logging.exception("%s %s", verb, words)
            said = {"failed": f"{verb}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        print(json.dumps(said), file=answers, flush=True)


@dataclass
class Worker:
    """The other end."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[str]

    @staticmethod
    def start(name: str, command: Sequence[str]) -> Worker:
        """Runs `command`, a script that calls `serve`."""
        return Worker(
            name, command, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def again(self) -> Worker:
        """A new process in the place of this one, which may hang."""
        self.end(patience_s=0)
        return Worker.start(self.name, self.command)

    def end(self, patience_s: float = 20) -> None:
        """Ends with its input, or is killed."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def send(self, verb: str, *words: Any) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # `answer` says that it has ended
            print(json.dumps([verb, *words]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout
        poll = select.poll()  # select() knows no file beyond the 1024th
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(PATIENCE_S * 1e3):
            raise CellError(f"{self.name}: no answer in {PATIENCE_S:.0f} s")
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"failed": "the process has ended, see above"}
        if "failed" in found:
            raise CellError(f"{self.name}: {found['failed']}")
        return found["said"]

    def ask(self, verb: str, *words: Any) -> Any:
        self.send(verb, *words)
        return self.answer()
