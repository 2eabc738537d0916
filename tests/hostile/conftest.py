"""One process that forks a child per command, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import Forks, forks


@pytest.fixture(scope="session")
def serving() -> Iterator[Forks]:
    with forks() as found:
        yield found
