"""One measured cell: a problem, its floor, our time and the peer's; and the file of JSON lines that cells stand in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from w4afp8.errors import RecipeError
from w4afp8.measure.floor import Machine

Kind = Literal["gemm", "moe"]


@dataclass(frozen=True, slots=True)
class PeerTime:
    """The peer on the same problem, in the same run."""

    name: str
    us: float
    spread_us: float
    how: str  # the mode and tile that its own tuner chose


@dataclass(frozen=True, slots=True)
class Cell:
    """Means over the routings that the cell cycled over, but times: medians of replays."""

    kind: Kind
    shape: str
    tokens: int
    rows: float  # of x that reach an expert here
    hit: float  # experts hit
    bytes: float
    flops: float
    floor_us: float
    bound: str  # bytes or flops
    read_us: float  # a plain read of the same bytes
    us: float
    spread_us: float
    schedule: str  # kernel/split_groups; of a layer gate_up's, then down's
    peer: PeerTime | None = None

    @property
    def x_floor(self) -> float:
        return self.us / self.floor_us

    @property
    def gb_s(self) -> float:
        return self.bytes / self.us / 1e3

    @property
    def tflop_s(self) -> float:
        return self.flops / self.us / 1e6

    @property
    def ratio(self) -> float | None:
        """The peer's time over ours: above 1 we are faster."""
        return self.peer.us / self.us if self.peer else None

    def to_json(self) -> dict[str, Any]:
        """A flat record; derived numbers are written out for whoever reads the line."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("kind", "peer")}
        derived = {"x_floor": self.x_floor, "GB_s": self.gb_s, "TFLOP_s": self.tflop_s}
        peer = {}
        if self.peer:
            peer = {"peer": self.peer.name, "peer_us": self.peer.us, "peer_spread_us": self.peer.spread_us,
                    "peer_how": self.peer.how, "ratio": self.ratio}  # fmt: skip
        return {"record": self.kind, **plain, **derived, **peer}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Cell:
        """The inverse; other keys (device, date, ...) are left alone."""
        peer = None
        if "peer" in record:
            peer = PeerTime(record["peer"], record["peer_us"], record["peer_spread_us"], record["peer_how"])
        own = {key: record[key] for key in Cell.__dataclass_fields__ if key not in ("kind", "peer")}
        times = [own["us"], own["floor_us"], own["read_us"], own["bytes"], *([peer.us] if peer else [])]
        if not min(times) > 0:
            raise ValueError("a time or a count of bytes that is not above zero")
        return Cell(kind=record["record"], **own, peer=peer)


@dataclass(frozen=True, slots=True)
class Run:
    """A machine and the cells measured on it."""

    about: Mapping[str, str]
    machine: Machine
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.about, "machine": self.machine.to_json(), "cells": [cell.to_json() for cell in self.cells]}


def machine_line(machine: Machine, about: Mapping[str, str]) -> str:
    """The line that stands before a run's cells."""
    return _line({"record": "machine", **about, **machine.to_json()})


def cell_line(cell: Cell, about: Mapping[str, str]) -> str:
    return _line({**cell.to_json(), **about})


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in record.items()})


def append(path: Path, line: str) -> None:
    """Add a line; what was measured before an interruption stays."""
    with path.open("a") as file:
        file.write(line + "\n")


def read_run(path: Path, kind: Kind) -> Run:
    """The last run of a file that `--out` wrote that has cells of one kind, and these.

    Raises: RecipeError when there is no such file, or no such run in it.
    """
    if not path.is_file():
        raise RecipeError(f"--from {path}: no such file")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"--from {path}: is no text ({error.reason}); expected what `w4afp8 bench --out` wrote"
        ) from None
    return parse_run(lines, kind, str(path))


def parse_run(lines: Iterable[str], kind: Kind, who: str) -> Run:
    """See `read_run`."""
    runs: list[tuple[dict[str, Any], list[Cell]]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["record"] == "machine":
                Machine.from_json(record)
                runs.append((record, []))
            elif record["record"] == kind:
                runs[-1][1].append(Cell.from_json(record))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RecipeError(
                f"{who}: line {number} is no record of `w4afp8 bench --out` ({error!r}); measure it again"
            ) from None
    whole = [(head, cells) for head, cells in runs if cells]
    if not whole:
        raise RecipeError(f"{who}: found no run of `w4afp8 bench {kind}`, expected its machine line and cells")
    head, cells = whole[-1]
    about = {key: str(value) for key, value in head.items() if isinstance(value, str) and key != "record"}
    return Run(about, Machine.from_json(head), tuple(cells))
