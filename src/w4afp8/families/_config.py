"""Reading a config.json: every field checked, every mistake kept until all are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w4afp8.errors import CheckpointError, raise_all

LARGEST_NUMBER = 1e30


class Fields:
    """The fields of a config; what is wrong with them collects in `problems` until `finish`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.problems: list[str] = []

    def whole(self, field: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.config.get(field, default)
        if type(value) is not int or value < least:
            self.problems.append(f"{field} is {value!r}, expected a whole number of at least {least}")
            return least
        return value

    def number(self, field: str, default: float, least: float = 0.0) -> float:
        """A finite number of at least `least`."""
        return number(self.config, field, default, self.problems, least)

    def only(self, field: str, expected: Any, why: str = "") -> None:
        """The one value that the rules here are written for; absent means that value."""
        value = self.config.get(field, expected)
        if value != expected:
            self.problems.append(f"{field} is {value!r}, expected {expected!r}{why}")

    def finish(self, what: str) -> None:
        """Raises: CheckpointError listing every problem."""
        raise_all(self.problems, CheckpointError, f"config.json is not a {what} configuration")


def number(fields: Mapping[str, Any], field: str, default: float, problems: list[str], least: float = 0.0) -> float:
    """A finite number of at least `least`; the default when the field is absent or, where that is allowed, null."""
    value = fields.get(field, default)
    if value is None and field.startswith("rope"):
        return default
    if type(value) not in (int, float) or not least <= value <= LARGEST_NUMBER:
        problems.append(f"{field} is {value!r}, expected a number of at least {least:g}")
        return default
    return float(value)
