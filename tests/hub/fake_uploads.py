"""How large files reach the Hub on loopback: git LFS whole or in parts, and Xet's storage."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_hub import FakeHub

PART_BYTES = 100_000  # larger files are sent in parts
XET_TOKEN = "xet-" + "b" * 34  # for the storage alone


class Uploads:
    """Part of a request's handler, which has routed it here and knows how to answer."""

    server: FakeHub
    words: list[str]
    body: bytes
    answer: Callable[..., None]
    refuse: Callable[..., None]

    def do_batch(self) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            row: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.objects:
                upload: dict[str, Any] = {"href": f"{self.server.url}/lfs-put/{oid}"}
                if size > PART_BYTES:
                    count = -(-size // PART_BYTES)
                    addresses = {f"{n + 1:05d}": f"{self.server.url}/lfs-part/{oid}/{n}" for n in range(count)}
                    upload = {"href": f"{self.server.url}/lfs-complete/{oid}",
                              "header": {"chunk_size": str(PART_BYTES), **addresses}}  # fmt: skip
                row["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/lfs-verify/{oid}"}}
            objects.append(row)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_put(self) -> None:
        self.store(self.words[1], self.body)

    def do_part(self) -> None:
        self.server.parts[self.words[1], int(self.words[2])] = self.body
        self.answer(200, {}, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def do_complete(self) -> None:
        oid = self.words[1]
        count = len(json.loads(self.body)["parts"])
        self.store(oid, b"".join(self.server.parts.pop((oid, n)) for n in range(count)))

    def store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self.refuse(400, "the content is not what its digest says")
            return
        self.server.objects[oid] = content
        self.server.finished[oid] += 1
        self.answer(200)

    def do_verify(self) -> None:
        self.answer(200 if self.words[1] in self.server.objects else 404)

    def do_token(self) -> None:
        """Where the storage is, and a key to it."""
        expires = int(time.time()) + 3600
        self.answer(200, {"casUrl": f"{self.server.url}/cas", "accessToken": XET_TOKEN, "exp": expires})

    def do_cas(self) -> None:
        """Nothing is known of other people's chunks, and no newer way of sending is spoken: the client goes on."""
        self.answer(404)

    def do_telemetry(self) -> None:
        self.answer(200)

    def do_xorb(self) -> None:
        self.answer(200, {"was_inserted": self.server.storage.put_xorb(self.words[-1], self.body)})

    def do_shard(self) -> None:
        """The files of a shard are complete: from now on a commit may name them."""
        for content in self.server.storage.files(self.body):
            oid = hashlib.sha256(content).hexdigest()
            self.server.objects[oid] = content
            self.server.finished[oid] += 1
        self.answer(200, {"result": 1})
