"""Xet storage, as far as an upload needs it: blocks of chunks (xorbs) arrive, a shard says which of them make a file.

From the public specification (huggingface.co/docs/xet: api, shard, xorb); the LZ4 frame from its own.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

HEADER_BYTES = ROW_BYTES = 48  # of a shard: its header, and every row of its file section
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30  # flags of a file: more rows follow its segments
END = b"\xff" * 32  # a file hash that ends the section


class Storage:
    """Every xorb that was sent."""

    def __init__(self) -> None:
        self.xorbs: dict[str, list[bytes]] = {}
        self.received: Counter[str] = Counter()  # xorb -> how often it arrived

    def put_xorb(self, name: str, body: bytes) -> bool:
        """Keep a xorb; True when it is new."""
        self.received[name] += 1
        new = name not in self.xorbs
        self.xorbs[name] = list(chunks(body))
        return new

    def files(self, shard: bytes) -> Iterator[bytes]:
        """The content of each file in the shard.  Raises: KeyError for a xorb that never arrived."""
        at = HEADER_BYTES
        while shard[at : at + 32] != END:
            flags, count = struct.unpack_from("<II", shard, at + 32)
            content = b""
            for i in range(1, 1 + count):
                row = at + i * ROW_BYTES
                _, length, first, last = struct.unpack_from("<IIII", shard, row + 32)
                content += (part := b"".join(self.xorbs[hash_name(shard[row : row + 32])][first:last]))
                assert len(part) == length
            yield content
            at += ROW_BYTES * (1 + count + (count if flags & VERIFIED else 0) + (1 if flags & WITH_SHA256 else 0))


def hash_name(stored: bytes) -> str:
    """A hash as addresses spell it: four little-endian words in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", stored))


def chunks(xorb: bytes) -> Iterator[bytes]:
    """Each chunk, decompressed.  A chunk's head: version, 3 bytes of stored size, scheme, 3 bytes of size."""
    at = 0
    while at < len(xorb) and xorb[at] == 0:  # what follows the chunks begins with a letter
        stored, size = (int.from_bytes(xorb[at + i : at + i + 3], "little") for i in (1, 5))
        body, scheme = xorb[at + 8 : at + 8 + stored], xorb[at + 4]
        content = body if scheme == 0 else unpack_lz4(body)
        content = ungroup(content) if scheme == 2 else content
        assert len(content) == size
        yield content
        at += 8 + stored


def ungroup(grouped: bytes) -> bytes:
    """Bytes 0, 4, 8 ... stand first, then 1, 5, 9 ..., and so on: put them back."""
    content, at = bytearray(len(grouped)), 0
    for lane in range(4):
        count = len(range(lane, len(grouped), 4))
        content[lane::4] = grouped[at : at + count]
        at += count
    return bytes(content)


def unpack_lz4(frame: bytes) -> bytes:
    """An LZ4 frame."""
    assert frame[:4] == b"\x04\x22\x4d\x18"
    flags = frame[4]
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    content = bytearray()
    while size := int.from_bytes(frame[at : at + 4], "little"):
        body = frame[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        if size >> 31:
            content += body
        else:
            _unpack_block(body, content)
        at += 4 + len(body) + (4 if flags & 16 else 0)
    return bytes(content)


def _unpack_block(block: bytes, content: bytearray) -> None:
    at = 0

    def length(nibble: int) -> int:
        nonlocal at
        found = nibble
        while nibble == 15:
            found += block[at]
            at += 1
            if block[at - 1] != 255:
                break
        return found

    while at < len(block):
        token = block[at]
        at += 1
        literals = length(token >> 4)
        content += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        back = int.from_bytes(block[at : at + 2], "little")
        at += 2
        count = 4 + length(token & 15)
        piece = bytes(content[-back:]) if back >= count else bytes(content[-back:]) * (count // back + 1)
        content += piece[:count]
