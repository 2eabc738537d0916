"""Publish a proven directory: gate, secrets, card, side files, weights, index and config last, read back.

Run it again after any stop: what is there is compared by digest and not sent again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w4afp8 import card
from w4afp8._version import __version__
from w4afp8.errors import CheckpointError, HubError, RecipeError, ValidationError, raise_all
from w4afp8.hub import secrets, shipment
from w4afp8.hub.refusals import explain, is_transient, status_of
from w4afp8.hub.remote import MAIN, PULL_REQUEST, Remote, RemoteFile, check_login
from w4afp8.hub.shipment import LAST, File, Phase, is_weight
from w4afp8.validate import gate
from w4afp8.validate.findings import Progress, silent
from w4afp8.validate.gate import Gate, State

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ATTEMPTS = 6  # per phase
LONGEST_WAIT_S = 30.0
CONFLICTS = (409, 412)
OnPhase = Callable[[Phase, int], None]  # a phase that begins, and how many of its files are not there yet


def unheard(phase: Phase, absent: int) -> None:
    """For who does not listen."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Who hears of what happens, and how to wait."""

    on_progress: Progress
    on_phase: OnPhase
    pause: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for."""

    repo: str
    private: bool | None = None  # None: it exists already
    revision: str | None = None
    create_pr: bool = False
    force: str | None = None  # why an unproven directory is published
    base_model: str | None = None

    def check(self) -> None:
        """Raises: RecipeError for what cannot be meant."""
        if not HUB_ID.fullmatch(self.repo):
            raise RecipeError(f"--repo {self.repo}: expected ORG/NAME")
        if self.create_pr and self.revision not in (None, MAIN):
            raise RecipeError(
                "--create-pr opens a pull request against main; to go on with one, give --revision refs/pr/N alone"
            )
        if self.force is not None and not self.force.strip():
            raise RecipeError("--force needs a reason: the card states it")


@dataclass(slots=True)
class Pushed:
    """What a push did, or would do."""

    repo: str
    revision: str
    state: str
    phases: tuple[Phase, ...]
    dry_run: bool
    created: bool = False
    pull_request: str | None = None
    sent: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files of the repository that are not of this directory

    def to_json(self) -> dict[str, Any]:
        return {
            "repo": self.repo, "revision": self.revision, "state": self.state, "dry_run": self.dry_run,
            "created": self.created, "pull_request": self.pull_request, "sent": self.sent, "others": self.others,
            "phases": [{"title": p.title, "files": [{"name": f.name, "bytes": f.bytes, "sha256": f.sha256}
                                                    for f in p.files]} for p in self.phases],
        }  # fmt: skip


def push(
    folder: Path,
    order: Order,
    *,
    dry_run: bool = False,
    on_progress: Progress = silent,
    on_phase: OnPhase = unheard,
    pause: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Publish `folder`.  With `dry_run` everything is checked that needs no network, and nothing is written or sent.

    Raises: ValidationError when it is not proven or holds a secret, HubError for what the Hub or the network refuses.
    """
    order.check()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory; give the one of a proven checkpoint")
    shipment.check(folder)
    if not dry_run:
        check_login()  # before the digests of hundreds of gigabytes
    verdict = _ask_the_gate(folder, order.force, on_progress)
    found = secrets.scan(shipment.side_files(folder))
    raise_all(found, ValidationError, f"{folder} holds a secret; remove it, and withdraw it where it came from")
    if not dry_run:
        card.write(folder, base_model=order.base_model, model=order.repo, forced=order.force, verdict=verdict)
    phases = shipment.pack(folder, verdict.files)
    pushed = Pushed(order.repo, order.revision or MAIN, verdict.state.value, phases, dry_run)
    if dry_run:
        return pushed
    remote = Remote(order.repo, pushed.revision)
    pushed.created = remote.open(order.private, order.create_pr)
    try:
        _deliver(remote, folder, pushed, order, _Told(on_progress, on_phase, pause))
    except HubError as error:
        if remote.pull_request is None:
            raise
        raise HubError(f"{error}\nthe pull request is open: go on with --revision {remote.revision}") from error
    return pushed


REMEDIES = {
    State.UNVALIDATED: "run `w4afp8 validate {} --against SOURCE`",
    State.STALE: "restore it, or run `w4afp8 validate {} --against SOURCE`",
    State.FAILED: "make or fetch {} again, then validate it",
}


def _ask_the_gate(folder: Path, force: str | None, on_progress: Progress) -> Gate:
    verdict = gate.state(folder, deep=True, on_progress=on_progress)
    if verdict.state is not State.PROVEN and force is None:
        raise ValidationError(f'{folder} is {verdict}; {REMEDIES[verdict.state].format(folder)}, or say --force "why"')
    if verdict.state is State.PROVEN and force is not None:
        raise RecipeError("--force: the directory is proven, no reason is needed; leave it out")
    return verdict


def _deliver(remote: Remote, folder: Path, pushed: Pushed, order: Order, told: _Told) -> None:
    there = _listing(remote)
    if not order.create_pr:
        _refuse_another_checkpoint(remote, there, pushed.phases)
    elif any(_missing(phase.files, there) for phase in pushed.phases):
        remote.begin_pull_request(f"Add {folder.resolve().name}", f"Sent by w4afp8 {__version__}; see README.md.")
    for phase in pushed.phases:
        told.on_phase(phase, len(_missing(phase.files, there)))
        pushed.sent += _send_phase(remote, folder, phase, told)
    _read_back(remote, pushed)
    remote.end_pull_request()
    pushed.revision, pushed.pull_request = remote.revision, remote.pull_request


def _listing(remote: Remote) -> dict[str, RemoteFile]:
    try:
        return remote.files()
    except Exception as error:
        raise explain(error, f"listing {remote.repo} at {remote.revision}") from error


def _missing(files: Iterable[File], there: Mapping[str, RemoteFile]) -> list[File]:
    """The files that are not there with the same content."""
    return [file for file in files if file.name not in there or not there[file.name].is_same(file)]


def _refuse_another_checkpoint(remote: Remote, there: Mapping[str, RemoteFile], phases: tuple[Phase, ...]) -> None:
    """New weights under an index that is visible already would be a broken download until the push ends."""
    published = [name for name in LAST if name in there]
    missing = [file.name for phase in phases for file in _missing(phase.files, there) if is_weight(file.name)]
    if published and missing and not remote.revision.startswith(PULL_REQUEST):
        raise HubError(
            f"{remote.repo} at {remote.revision} holds another checkpoint: it has {' and '.join(published)}, and "
            f"{len(missing)} weight files differ, first {missing[0]}; "
            "use --create-pr, another --revision or another name"
        )


def _send_phase(remote: Remote, folder: Path, phase: Phase, told: _Told) -> list[str]:
    """Send what is not there, by name; after a broken line or a busy server look again and go on."""
    absent: list[str] | None = None  # when the phase began
    failures = 0  # since the last commit
    while True:
        batch: tuple[File, ...] = ()
        try:
            head = remote.head()  # before the list: a commit by somebody else after it is a conflict
            waiting = _missing(phase.files, remote.files())
            absent = [file.name for file in waiting] if absent is None else absent
            done = len(phase.files) - len(waiting)
            for batch in shipment.batches(waiting):
                head, failures = remote.send(folder, batch, phase.title, head), 0
                done += len(batch)
                told.on_progress(phase.title, done, len(phase.files))
            return absent
        except Exception as error:
            # A commit whose answer was lost is repeated by the client, and meets itself as a conflict.
            if batch and status_of(error) in CONFLICTS and not _missing(batch, _listing(remote)):
                continue
            failures += 1
            if failures == ATTEMPTS or not is_transient(error):
                raise explain(error, f"sending {phase.title} to {remote.repo}") from error
            told.pause(min(LONGEST_WAIT_S, 2.0**failures))


def _read_back(remote: Remote, pushed: Pushed) -> None:
    """Compare what the Hub lists now with what was meant: sizes and digests, file by file."""
    there = _listing(remote)
    files = {file.name: file for phase in pushed.phases for file in phase.files}
    wrong = [
        f"{name}: found {there[name].bytes} bytes" + ("" if there[name].bytes != file.bytes else " of other content")
        + f", expected {file.bytes} with SHA-256 {file.sha256[:12]}..." if name in there else f"{name}: not there"
        for name, file in files.items()
        if name not in there or not there[name].is_same(file)
    ]  # fmt: skip
    raise_all(wrong, HubError, f"{remote.repo} does not hold what was sent; run the same command again")
    pushed.others = sorted(name for name in there.keys() - files.keys() if not name.startswith("."))
