"""What an error becomes: one line with the next step, without a token, and whether to try again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from w4afp8.errors import HubError
from w4afp8.hub.refusals import explain, is_transient


class Said(OSError):
    """An error with a server's answer, as huggingface_hub raises them."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.response = SimpleNamespace(status_code=status)
        self.server_message = message


def wrapped(inner: BaseException, words: str) -> RuntimeError:
    """`inner`, inside another error."""
    try:
        raise RuntimeError(words) from inner
    except RuntimeError as error:
        return error


def xet(status: str, address: str) -> ConnectionError:
    """An answer as hf_xet 1.8 raises it: a plain error, the status in its words."""
    return ConnectionError(f"Network error: Request error: HTTP status {status}, domain: http://127.0.0.1{address}")


KEY, BLOCK = "/api/models/org/toy/xet-write-token/main", "/cas/v1/xorbs/default/" + "0" * 64


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Said(403, "Private repository storage quota exceeded"), "free or buy storage"),
        (Said(403, "Forbidden"), "needs write permission"),
        (Said(404, "gone"), "no such repository"),
        (Said(507), "storage is full"),
        (Said(418, "a teapot\nwith a long story"), "the Hub answered 418 (a teapot); run the same command again"),
        (wrapped(Said(503, "busy"), "Error while uploading 'x'"), "the Hub answered 503 (busy)"),
        (ConnectionResetError(104, "Connection reset by peer"), "no connection ([Errno 104] Connection reset by peer)"),
        (ValueError("LFS batch API returned errors:\nno room"), "pushing: LFS batch API returned errors:"),
        (KeyError(), "pushing: KeyError"),
        (xet("client error (413 Request Entity Too Large)", BLOCK), "the Hub answered 413 (Network error"),
        (xet("server error (507 Insufficient Storage)", BLOCK), "the account's storage is full"),
        (ConnectionError("Network error: connection refused"), "no connection (Network error: connection refused)"),
    ],
)
def test_an_error_is_one_line_with_the_next_step(error: BaseException, says: str) -> None:
    found = explain(error, "pushing")
    assert says in str(found) and "\n" not in str(found) and found.exit_code == 8


def test_no_token_is_ever_part_of_it() -> None:
    secret = "hf_" + "q" * 34
    assert secret not in str(explain(Said(401, f"token {secret} has expired"), "pushing"))


def test_an_explained_error_stays_as_it_is() -> None:
    error = HubError("already said")
    assert explain(error, "pushing") is error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Said(500), True), (Said(429), True), (Said(404), False), (Said(412), False), (Said(403), False),
        (wrapped(Said(403), "Error while uploading 'x' to the Hub."), True),
        (wrapped(Said(413), "Error while uploading 'x' to the Hub."), False),
        (TimeoutError(), True), (BrokenPipeError(), True), (ValueError("no"), False),
        (xet("client error (401 Unauthorized)", BLOCK), True), (xet("client error (403 Forbidden)", BLOCK), True),
        (xet("client error (401 Unauthorized)", KEY), False), (xet("client error (403 Forbidden)", KEY), False),
        (xet("client error (413 Request Entity Too Large)", BLOCK), False),
        (xet("server error (503 Service Unavailable)", KEY), True),
    ],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error: BaseException, again: bool) -> None:
    assert is_transient(error) is again
