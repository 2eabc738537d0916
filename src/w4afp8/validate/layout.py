"""Proving a directory in a runtime layout: the canonical checkpoint comes out of it, byte for byte, and nothing else.

Streamed, without a second copy: the canonical files are made again and hashed instead of written, each expert taken out
of its stacks is laid out again, which must give the stored bytes (so padding counts too), and the stacks that the ops
here read are multiplied as they are.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from w4afp8._version import __version__
from w4afp8.errors import RecipeError, W4AFP8Error
from w4afp8.kernels import device as devices
from w4afp8.layouts import _record
from w4afp8.layouts._directory import LaidOut
from w4afp8.validate import packed
from w4afp8.validate.findings import Progress, ValidationReport, silent
from w4afp8.validate.laid_out import THEN, LayoutChecks

CPU = torch.device("cpu")


def place(folder: Path, sample: int | None, device: str) -> torch.device:
    """Where the stacks are multiplied.  Raises: RecipeError for options that mean nothing here, DeviceError."""
    try:
        record = _record.read(folder)
    except W4AFP8Error:
        return CPU  # the report says what is wrong with the record
    if packed.multiplied(record):
        return devices.resolve(device, "validate --device cuda")
    what = f"nothing here multiplies {record.form} in {record.layout}"
    if sample is not None:
        raise RecipeError(f"--quick and --sample: {what}, and its bytes are always compared whole; leave them out")
    if device == "cuda":
        raise RecipeError(f"--device cuda: {what}, its bytes are compared; leave it out")
    return CPU


def validate_layout(
    folder: Path,
    against: Path | None = None,
    on_progress: Progress | None = None,
    *,
    sample: int | None = None,
    device: torch.device = CPU,
) -> ValidationReport:
    """Prove it; with `against`, the canonical directory, that it is that one.

    Every byte is compared; `sample` experts of every layer are multiplied, all of them when it is None.
    What is wrong stands in the report.  Memory is a batch of experts.
    """
    began = time.monotonic()
    name = folder.resolve().name
    report = ValidationReport(__version__, name, against.resolve().name if against else None, "", sample)
    checks, products = LayoutChecks(), packed.PackedChecks()
    report.checks += [*checks.all[:-1], *products.all, checks.proven]
    try:
        checks.files(folder, _record.read(folder))
        laid = LaidOut(folder)
    except W4AFP8Error as error:
        checks.record.blame(_record.RECORD, str(error), "a sound record, index and headers", THEN)
        for check in report.checks[1:]:
            if not check.failed:
                check.skip("the directory cannot be read")
    else:
        with laid:
            _prove(laid, checks, products, report, against, on_progress or silent, device)
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _prove(
    laid: LaidOut, checks: LayoutChecks, products: packed.PackedChecks, report: ValidationReport, against: Path | None,
    progress: Progress, device: torch.device,
) -> None:  # fmt: skip
    report.against = report.against or f"its canonical checkpoint ({laid.record.canonical[:12]}...)"
    report.format = f"{laid.record.weight_format} in {laid.record.layout}"
    try:
        checks.run(laid, progress)
        products.run(laid, report, device, report.sample, progress)
    except W4AFP8Error as error:
        checks.record.blame(laid.folder.name, str(error), "what its record says", THEN)
        for check in report.checks[:-1]:
            if not check.examined and check.idle is None:
                check.skip("the directory cannot be read to its end")
    checks.proof(laid, against)
    readers = {id(reader): reader for reader in (laid.top, *laid.ranks)}.values()
    report.bytes_out = sum(spec.span_bytes for reader in readers for spec in reader.specs.values())
