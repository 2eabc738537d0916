"""Static activation scales, where engines read them or where they are only kept.

A format whose engines scale activations when they see them has none; `convert` keeps those of the format that the
checkpoint came from in a file outside the index, for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.errors import W4AFP8Error
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate.findings import Check
from w4afp8.validate.sides import Side
from w4afp8.validate.statics import read_kept
from w4afp8.validate.structure import REMAKE, scale_names


def path_of(folder: Path, target: CheckpointFormat) -> Path | None:
    """The file of scales that are kept outside the index, where there is one."""
    rule = target.input_scale
    path = folder / rule.file
    return path if rule.names and not rule.indexed and path.is_file() else None


def read_scales(reader: CheckpointReader, output: Side, target: CheckpointFormat, check: Check) -> Mapping[str, float]:
    """Every activation scale by name, from the index or the file of kept ones; what is missing is blamed."""
    rule = target.input_scale
    if rule.within or not rule.names:
        check.idle = f"{target.name} has no activation scales of its own"
        return {}
    wanted = scale_names(output.family, output.d, target)
    if rule.indexed:
        return {name: float(reader.read(name).float().reshape(())) for name in wanted}
    path = path_of(reader.folder, target)
    if path is None:
        check.idle = "activations are scaled when they are seen, and no static scales were kept"
        return {}
    try:
        found = {name: float(value.float()) for name, value in read_kept(path).items()}
    except W4AFP8Error as error:
        check.blame(rule.file, str(error), "the activation scales that convert kept", REMAKE)
        return {}
    for name in sorted(set(wanted) ^ set(found)):
        check.blame(name, "it" if name in found else "nothing", f"every expert's scales in {rule.file}", REMAKE)
    return found
