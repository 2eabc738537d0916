"""What the Hub's and the network's refusals mean, and what to do next.  No token is ever part of a message."""

from __future__ import annotations

import re
from collections.abc import Iterator

from w4afp8.errors import HubError

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z]{8,}")
NETWORK = ("httpx", "httpx2", "httpcore", "hf_xet", "requests", "urllib3")  # packages whose errors mean the line
STORAGE = "Error while uploading"  # huggingface_hub's words when a storage address, not the Hub, refused
# hf_xet raises a plain ConnectionError for an answer too: the status stands in its words only (measured with 1.8).
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
XET_KEY = "/xet-write-token/"  # the Hub's address that gives out keys to the storage; what it refuses, the Hub refuses
NEXT = {
    401: "the login is missing or expired: run `hf auth login`, or set HF_TOKEN",
    402: "the account must be paid for this: look at its billing settings",
    403: "this login may not write there: it must be a member's, and the token needs write permission",
    404: "no such repository or revision, or this login may not see it",
    409: "the repository changed meanwhile: look at what happened there, then run the same command again",
    412: "the repository changed meanwhile: look at what happened there, then run the same command again",
    413: "it is more than the account's storage or the Hub's limits allow: free or buy storage, or use smaller shards",
    507: "the account's storage is full: free or buy storage",
}
AGAIN = "run the same command again; what was sent is kept"


def explain(error: BaseException, what: str) -> HubError:
    """A HubError of one line: what was tried, what was said, what to do next."""
    if isinstance(error, HubError):
        return error
    status, words = status_of(error), _words(error)
    if status is None and not is_network(error):
        return HubError(f"{what}: {words}")
    if status is None:
        return HubError(f"{what}: no connection ({words}); check the network, then {AGAIN}")
    quota = status == 403 and re.search(r"quota|storage|billing|limit", words, re.I) is not None
    then = NEXT[413] if quota else NEXT.get(status, AGAIN)
    return HubError(f"{what}: the Hub answered {status} ({words}); {then}")


def is_transient(error: BaseException) -> bool:
    """True when trying again, with new addresses, may help: a broken line, a busy server, an expired upload address."""
    status = status_of(error)
    if status is None:
        return is_network(error)
    return status in TRANSIENT or (status in (400, 401, 403) and any(map(_is_storage, _chain(error))))


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, however deep it is wrapped."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    found = next(filter(None, (XET_STATUS.search(str(link)) for link in _chain(error))), None)
    return int(found[1]) if found else None


def _is_storage(error: BaseException) -> bool:
    """True when a storage address refused, not the Hub: its key ran out, and another try gets a new one."""
    return STORAGE in str(error) or (XET_STATUS.search(str(error)) is not None and XET_KEY not in str(error))


def is_network(error: BaseException) -> bool:
    """True for a line that broke rather than a server that answered."""
    return any(
        isinstance(link, ConnectionError | TimeoutError) or type(link).__module__.split(".")[0] in NETWORK
        for link in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    """The server's own words when it said any, else the error's first line that says something."""
    for link in _chain(error):
        said = getattr(link, "server_message", None)
        if isinstance(said, str) and said.strip():
            return _clean(said)
    deepest = [str(link) for link in _chain(error) if str(link).strip()]
    return _clean(deepest[-1] if deepest else type(error).__name__)


def _clean(text: str) -> str:
    line = next(line.strip() for line in text.splitlines() if line.strip())
    return TOKEN.sub("hf_...", line)[:300]
