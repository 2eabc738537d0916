"""Which proof a directory asks for: by what it says of its making, never by its format's name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from w4afp8 import families, formats
from w4afp8.checkpoint.lineage import CONVERSION, read_lineage
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.errors import W4AFP8Error
from w4afp8.families._spec import Dimensions
from w4afp8.layouts._record import is_laid_out
from w4afp8.validate import account
from w4afp8.validate import config as configs
from w4afp8.validate.converted import carried_proof


class Kind(StrEnum):
    """What made the directory, as far as its proof cares."""

    QUANTIZED = "quantized"  # beside the source that was rounded: outputs, weights, products
    CONVERTED = "converted"  # beside the source that was converted: the same numbers
    LAYOUT = "layout"  # beside the canonical checkpoint: the same bytes


def kind_of(folder: Path, against: Path | None, *, look: bool = False) -> Kind:
    """The proof to run; `look`: samples or a GPU are asked for, which only the first kind has.

    A conversion of a quantized checkpoint can be proven beside either source; the one that is given decides.
    """
    if is_laid_out(folder):
        return Kind.LAYOUT
    if not (folder / CONVERSION).is_file():
        return Kind.QUANTIZED
    if not _is_quantizable(folder):
        return Kind.CONVERTED
    if against is not None:
        return Kind.CONVERTED if _was_converted(folder, against) else Kind.QUANTIZED
    return Kind.CONVERTED if carried_proof(folder) is not None and not look else Kind.QUANTIZED


def _is_quantizable(folder: Path) -> bool:
    """Whether `quantize` could have written it: then it can be held against what was rounded."""
    config = configs.read_config(folder)[0]
    try:
        found = formats.announced(config)
        sizes = families.of(config).dimensions(config)
    except W4AFP8Error:
        return True  # a config that says nothing: that proof names what is wrong with it
    return isinstance(sizes, Dimensions) and found is not None and found.quantizable


def _was_converted(folder: Path, against: Path) -> bool:
    """Whether the experts of `against` stand in the format that the conversion began with."""
    try:
        with CheckpointReader(against) as reader:
            found = account.format_of(reader)
    except W4AFP8Error:
        return False
    try:
        return found == read_lineage(folder).before
    except W4AFP8Error:  # damaged: the proof of a conversion says so, and 4 bits are not what one quantizes
        return found in formats.names() and formats.get(found).bits == 4
