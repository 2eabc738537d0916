"""A Hub on loopback, as far as publishing and downloading a model need it; huggingface_hub speaks to it unchanged.

Repositories, branches, pull requests, preupload, LFS batch with single and multipart uploads, Xet uploads, commits with
a parent, the file tree, resolve.  `trouble` decides before each request what goes wrong.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

import psutil
from fake_answers import TOKEN, Entry, Handler
from fake_storage import Storage

__all__ = ["TOKEN", "Entry", "FakeHub", "Repo"]

Trouble = Callable[[str, int], "int | str | None"]  # (kind of request, which one of its kind) -> what goes wrong


@dataclass
class Repo:
    """A repository: revisions, each a list of commits, each a whole tree."""

    private: bool
    trees: dict[str, dict[str, Entry]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)  # number -> draft, open
    history: list[tuple[str, dict[str, Entry]]] = field(default_factory=list)


class FakeHub(ThreadingHTTPServer):
    """`with FakeHub() as hub:` serves `hub.url` in a thread."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # git id -> content of small files
        self.objects: dict[str, bytes] = {}  # sha256 -> content of large files
        self.parts: dict[tuple[str, int], bytes] = {}
        self.storage = Storage()  # Xet's
        self.finished: Counter[str] = Counter()  # sha256 -> how often it was sent to its end
        self.seen: Counter[str] = Counter()  # kind -> requests
        self.trouble: Trouble = lambda kind, count: None
        self.namespaces = {"org"}
        self.kill_at: tuple[str, int] | None = None  # before answering it, the client's process is killed
        self.lock = threading.Lock()

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""

    def forget(self) -> None:
        """Empty again."""
        with self.lock:
            for kept in (self.repos, self.blobs, self.objects, self.parts, self.finished, self.seen):
                kept.clear()
            self.storage = Storage()

    def kill_client(self, port: int) -> None:
        """SIGKILL to the process at the other end of a connection: a child of this one."""
        child = next(c for c in psutil.Process().children() for s in c.net_connections("tcp") if s.laddr.port == port)
        os.kill(child.pid, signal.SIGKILL)

    def add_repo(self, name: str, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        self.branch(repo, "main", {})
        return repo

    def branch(self, repo: Repo, revision: str, tree: dict[str, Entry]) -> None:
        repo.trees[revision] = tree
        repo.heads[revision] = hashlib.sha1(f"{revision}{time.monotonic_ns()}".encode()).hexdigest()

    def content(self, entry: Entry) -> bytes:
        return self.objects[entry.sha256] if entry.sha256 else self.blobs[entry.oid]
