"""How the Hub on loopback answers, request by request."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fake_uploads import XET_TOKEN, Uploads

if TYPE_CHECKING:
    from fake_hub import FakeHub, Repo

TOKEN = "hf_" + "a" * 34  # what a login would be
POINTER_BYTES = 134
WHEN = "2026-01-01T00:00:00.000Z"


@dataclass
class Entry:
    """A file of a revision."""

    oid: str  # git's, of the content, or of the pointer's stand-in
    size: int
    sha256: str | None = None  # of an LFS file


class Handler(Uploads, BaseHTTPRequestHandler):
    """One request."""

    server: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    lost = doubled = False

    def log_message(self, *arguments: Any) -> None:
        """Silent."""

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if not headers or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer(status, {"error": message}, headers)

    def route(self) -> None:
        parts = urlsplit(self.path)
        self.words = [unquote(word) for word in parts.path.strip("/").split("/")]
        self.kind = self.kind_of()
        with self.server.lock:
            self.server.seen[self.kind] += 1
            count = self.server.seen[self.kind]
        if self.server.kill_at == (self.kind, count):
            self.server.kill_at = None
            self.server.kill_client(self.client_address[1])
            self.close_connection = True
            return
        trouble = self.server.trouble(self.kind, count)
        if trouble == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.lost = trouble == "lost"  # done, but the answer never arrives
        self.doubled = trouble == "doubled"  # done, but said to be in conflict with itself
        if trouble == "slow":
            time.sleep(0.3)
        if isinstance(trouble, int):
            self.refuse(trouble, f"trouble {trouble}")
            return
        wanted = {"put": None, "part": None, "complete": None, "telemetry": None}.get(self.kind, TOKEN)
        wanted = XET_TOKEN if self.kind in ("xorb", "shard", "cas") else wanted
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            self.refuse(401, "Invalid credentials in Authorization header")
            return
        with self.server.lock:
            getattr(self, f"do_{self.kind}")()

    do_GET = do_POST = do_PUT = do_HEAD = route

    def kind_of(self) -> str:
        w = self.words
        if w[0] == "api":
            if w[1] in ("whoami-v2", "validate-yaml"):
                return w[1].replace("-", "_")
            if w[1] == "repos":
                return "create"
            return {"revision": "info", "tree": "tree", "preupload": "preupload", "commit": "commit",
                    "branch": "branch", "xet-write-token": "token",
                    "discussions": "discussions"}.get(w[4] if len(w) > 4 else "revision", "info")  # fmt: skip
        if w[0] == "cas":
            return {"v1/xorbs": "xorb", "v1/shards": "shard"}.get("/".join(w[1:3]), "cas")
        if w == ["v1", "telemetry"]:
            return "telemetry"
        if "resolve" in w:
            return "resolve"
        return {"lfs-put": "put", "lfs-part": "part", "lfs-complete": "complete", "lfs-verify": "verify"}.get(
            w[0], "batch"
        )

    def repo(self) -> tuple[Repo, str] | None:
        """The repository of an /api/models/ address and the revision in it; None after a refusal."""
        name = "/".join(self.words[2:4])
        revision = "/".join(self.words[5:]) if len(self.words) > 5 else "main"
        repo = self.server.repos.get(name)
        if repo is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        revision = next((name for name, head in repo.heads.items() if head == revision), revision)
        if revision not in repo.trees and self.kind != "branch":
            self.refuse(404, "Invalid rev id", "RevisionNotFound")
            return None
        return repo, revision

    def do_whoami_v2(self) -> None:
        self.answer(200, {"name": "somebody", "type": "user", "orgs": [{"name": "org"}]})

    def do_validate_yaml(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def do_create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.server.namespaces:
            self.refuse(403, "You don't have the rights to create a model under the namespace")
        elif name in self.server.repos:
            self.refuse(409, "You already created this model repo")
        else:
            self.server.add_repo(name, asked.get("visibility") == "private" or bool(asked.get("private")))
            self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def do_info(self) -> None:
        found = self.repo()
        if found:
            repo, revision = found
            name = "/".join(self.words[2:4])
            self.answer(200, {"id": name, "modelId": name, "private": repo.private, "sha": repo.heads[revision],
                              "tags": [],
                              "siblings": [{"rfilename": path} for path in repo.trees[revision]]})  # fmt: skip

    def do_branch(self) -> None:
        found = self.repo()
        if found:
            repo, revision = found
            if revision in repo.trees:
                self.refuse(409, "Reference already exists")
            else:
                self.server.branch(repo, revision, dict(repo.trees["main"]))
                self.answer(200)

    def do_tree(self) -> None:
        found = self.repo()
        if found:
            rows = []
            for path, entry in found[0].trees[found[1]].items():
                row: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
                if entry.sha256:
                    row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": POINTER_BYTES}
                rows.append(row)
            self.answer(200, rows)

    def do_preupload(self) -> None:
        found = self.repo()
        if found:
            tree, rows = found[0].trees[found[1]], []
            for file in json.loads(self.body)["files"]:
                large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
                entry = tree.get(file["path"])
                rows.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
                             "oid": (entry.sha256 or entry.oid) if entry else None})  # fmt: skip
            self.answer(200, {"files": rows})

    def do_commit(self) -> None:
        found = self.repo()
        if not found:
            return
        repo, revision = found
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.heads[revision]):
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        tree = dict(repo.trees[revision])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.server.blobs[oid] = content
                tree[value["path"]] = Entry(oid, len(content))
            elif value["oid"] in self.server.objects:
                stand_in = hashlib.sha1(value["oid"].encode()).hexdigest()
                tree[value["path"]] = Entry(stand_in, value["size"], value["oid"])
            else:
                self.refuse(400, f"LFS object {value['oid']} was never uploaded")
                return
        self.server.branch(repo, revision, tree)
        repo.history.append((revision, tree))
        if self.doubled:
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        name = "/".join(self.words[2:4])
        address = f"{self.server.url}/{name}"
        self.answer(200, {"success": True, "commitOid": repo.heads[revision],
                          "commitUrl": f"{address}/commit/{repo.heads[revision]}"})  # fmt: skip

    def do_discussions(self) -> None:
        """Open a draft, look at it, or make it ready."""
        name = "/".join(self.words[2:4])
        repo, numbers = self.server.repos[name], self.words[5:]
        if not numbers:
            number = 1 + len(repo.pull_requests)
            repo.pull_requests[number] = "draft"
            self.server.branch(repo, f"refs/pr/{number}", dict(repo.trees["main"]))
            self.answer(200, {"num": number})
        elif numbers[1:] == ["status"]:
            repo.pull_requests[int(numbers[0])] = json.loads(self.body)["status"]
            self.answer(200, {"newStatus": {"id": "1", "type": "status-change", "createdAt": WHEN,
                                            "data": {"status": json.loads(self.body)["status"]}}})  # fmt: skip
        else:
            number = int(numbers[0])
            self.answer(200, {"title": "a pull request", "num": number, "createdAt": WHEN, "events": [],
                              "status": repo.pull_requests[number], "repo": {"name": name, "type": "model"},
                              "isPullRequest": True, "changes": {"base": "refs/heads/main"},
                              "filesWithConflicts": []})  # fmt: skip

    def do_resolve(self) -> None:
        repo = self.server.repos["/".join(self.words[:2])]
        revision = self.words[3]
        name = next((r for r, head in repo.heads.items() if revision in (r, head)), "main")
        entry = repo.trees[name].get("/".join(self.words[4:]))
        if entry is None:
            self.refuse(404, "Entry not found", "EntryNotFound")
            return
        content = self.server.content(entry)
        digest = entry.sha256 or entry.oid
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": repo.heads[name], "Content-Length": str(len(content))}
        self.answer(200, content, headers | ({"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                                             if entry.sha256 else {}))  # fmt: skip
