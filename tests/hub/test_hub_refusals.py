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
    ],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error: BaseException, again: bool) -> None:
    assert is_transient(error) is again
