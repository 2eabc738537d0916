"""Into a layout, back, and proven, as the commands do it: what the tests of whole checkpoints share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from w4afp8.layouts._record import Record
from w4afp8.relayout.back import prepare_back, restore
from w4afp8.relayout.plan import prepare
from w4afp8.relayout.run import lay_out
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import take_seal

Make = Callable[..., Path]
SHARD_GB = 0.0003


def into(source: Path, name: str, out: Path, *, tp: int = 1, ep: int = 1, tolerance: float = 0, **how: Any) -> Record:
    return lay_out(prepare(source, name, out, tp=tp, ep=ep, tolerance=tolerance, shard_gb=SHARD_GB), **how)


def back(laid_out: Path, out: Path, jobs: int | None = None, **how: Any) -> None:
    laid, needs, jobs = prepare_back(laid_out, jobs)
    with laid:
        restore(laid, needs, out, jobs, **how)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def stops_after(count: int) -> Callable[[], bool]:
    asked: Iterator[bool] = iter([False] * count + [True] * 99)
    return lambda: next(asked)


def prove(folder: Path, against: Path | None = None) -> bool:
    """As `w4afp8 validate` does it."""
    seal = take_seal(folder)
    report = validate(folder, against)
    gate.write_verdict(folder, report, seal)
    assert report.passed, [str(p) for p in report.problems]
    return report.proven
