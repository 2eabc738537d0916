"""The static activation scales of a checkpoint, wherever its format has or keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.reader import CheckpointReader, read_tensor
from w4afp8.errors import CheckpointError, raise_all
from w4afp8.families._inventory import is_number
from w4afp8.families._spec import PROJECTIONS
from w4afp8.validate.findings import Check
from w4afp8.validate.matrices import Checkpoint
from w4afp8.validate.values import SMALLEST_NORMAL

Scales = Mapping[tuple[str, str], Tensor]  # (expert's stem, projection) -> its static activation scale


def read_statics(reader: CheckpointReader, checkpoint: Checkpoint) -> Scales:
    """Every scale that is there, as it is stored.  Raises: CheckpointError for a file that holds something else."""
    rule = checkpoint.format.input_scale
    if not rule.names:
        return {}
    kept = {} if rule.indexed or rule.within else read_kept(reader.folder / rule.file)
    found: dict[tuple[str, str], Tensor] = {}
    sizes, family = checkpoint.sizes, checkpoint.family
    for layer in filter(sizes.is_moe, range(sizes.all_layers)):
        for expert in range(sizes.experts):
            stem = family.expert(sizes, layer, expert)
            for projection in PROJECTIONS:
                name = rule.tensor_name(stem, projection)
                if name in kept:
                    found[stem, projection] = kept.pop(name)
                elif name in reader.specs:
                    found[stem, projection] = reader.read(name)
    if kept:
        raise CheckpointError(f"{rule.file}: {next(iter(kept))} is no activation scale of this checkpoint")
    return found


def check_positive(scales: Scales, check: Check) -> None:
    """Engines divide by them."""
    for (stem, projection), value in scales.items():
        seen = float(value)
        if not SMALLEST_NORMAL <= seen < float("inf"):
            check.blame(f"{stem}.{projection}.input_scale", f"{seen:g}", "a positive number", "convert again")


def read_kept(path: Path) -> dict[str, Tensor]:
    """The scales that `convert` keeps in a file outside the index, by name; none where there is no file.

    Raises: CheckpointError for a file that holds something else.
    """
    specs = read_header(path)[0] if path.is_file() else []
    raise_all([f"{spec}: expected F32 [1]" for spec in specs if not is_number(spec)], CheckpointError, path.name)
    return {spec.name: read_tensor(path, spec) for spec in specs}
