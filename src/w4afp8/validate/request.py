"""What `w4afp8 validate` cannot prove, refused before a byte is read and before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from w4afp8 import formats
from w4afp8.checkpoint.journal import FINGERPRINT
from w4afp8.checkpoint.lineage import CONVERSION, read_lineage
from w4afp8.checkpoint.reader import CONFIG, INDEX, CheckpointReader
from w4afp8.errors import CheckpointError, RecipeError, ResourceError, W4AFP8Error
from w4afp8.layouts._record import is_laid_out
from w4afp8.validate import account
from w4afp8.validate.config import OWN_FOLDER
from w4afp8.validate.findings import ValidationReport


def check_promise(folder: Path) -> None:
    """Whether the directory promises anything: finished, a checkpoint, and one that `quantize` or `convert` wrote.

    A directory that others wrote in a format of `quantize` promises what that format means.
    Raises: CheckpointError.
    """
    if not folder.is_dir():
        what = "a file, expected a directory" if folder.exists() else "no such directory"
        raise CheckpointError(f"{folder}: {what}; give the one that `w4afp8 quantize` or `convert` wrote")
    if next(folder.glob(f"{OWN_FOLDER}/*/{FINGERPRINT}"), None) is not None and not (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder}: unfinished, config.json is written last; run the command that writes it again, it goes on"
        )
    if not (folder / OWN_FOLDER).is_dir() and not any((folder / name).exists() for name in (CONFIG, INDEX)):
        raise CheckpointError(f"{folder}: no checkpoint, found neither {CONFIG} nor {INDEX}; give the directory of one")
    found = _format_of_a_source(folder)
    if found is not None:
        raise CheckpointError(
            f"{folder}: a source, its experts stand in {found} and no {OWN_FOLDER}/record.json or {CONVERSION} says "
            "that they were made from another's; there is nothing to prove. `w4afp8 quantize` or `convert` it, and "
            f"validate what that writes with --against {folder}"
        )


def check_against(folder: Path, against: Path) -> None:
    """Whether `against` can be what the directory was made from: what was converted, or else what was quantized.

    Raises: RecipeError when its experts stand in int4 that `quantize` writes, and are not those that were converted.
    """
    if is_laid_out(folder):
        return
    try:
        lineage = read_lineage(folder) if (folder / CONVERSION).is_file() else None
        with CheckpointReader(against) as reader:
            found = account.format_of(reader)
        target = formats.checkpoint(found)
    except W4AFP8Error:
        return  # the validation says what is wrong
    if not target.quantizable or target.scheme != "W4AFP8" or (lineage and found == lineage.before):
        return
    wanted = f"{lineage.source.name} ({lineage.before}), which was converted, or " if lineage else ""
    raise RecipeError(
        f"--against {against}: its experts stand in {found} already, so {folder} was not made from it; expected "
        f"{wanted}the source that was quantized"
    )


def converted_from(folder: Path) -> str | None:
    """The name of the directory that was converted into this one; None where `convert` did not write it."""
    try:
        return read_lineage(folder).source.name if (folder / CONVERSION).is_file() else None
    except W4AFP8Error:
        return None


def check_writable(folder: Path) -> None:
    """Whether the verdict can be kept, asked before hours are spent on it.  Raises: ResourceError."""
    own = folder / OWN_FOLDER
    place = own if own.is_dir() else folder
    if not os.access(place, os.W_OK):
        raise ResourceError(
            f"{place}: cannot be written, and the verdict is kept there; make it writable, or say --no-report: then "
            "nothing is kept, and `push` has no proof"
        )


def is_another_source(report: ValidationReport) -> bool:
    """Whether all that is wrong is the directory given as the source: that says nothing of the one it was held to."""
    failed = [check.name for check in report.checks if check.failed]
    return failed == ["source"]


def _format_of_a_source(folder: Path) -> str | None:
    """The experts' format where no run of this program wrote them and `quantize` writes no such format."""
    own = (folder / OWN_FOLDER / "record.json", folder / CONVERSION)
    if is_laid_out(folder) or any(path.exists() for path in own):
        return None
    try:
        with CheckpointReader(folder) as reader:
            name = account.format_of(reader)
        return None if formats.checkpoint(name).quantizable else name
    except W4AFP8Error:
        return None  # the validation says what is wrong
