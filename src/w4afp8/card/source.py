"""What the source's own card and licence say, and where they stand now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from w4afp8.checkpoint import atomic
from w4afp8.validate.seal import CARD, SOURCE_CARD

OURS = "<!-- written by w4afp8 -->"
FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?\n)---[ \t]*\r?\n", re.DOTALL)
# The opening of a licence that leaves no doubt -> the Hub's name of it.
KNOWN = (
    (re.compile(r"\AMIT License\b"), "mit"),
    (re.compile(r"\AApache License\s+Version 2\.0\b"), "apache-2.0"),
    (re.compile(r"\ABSD 3-Clause License\b"), "bsd-3-clause"),
)
CARRIED = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "language")


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence's Hub name, and where that was read; both None when nothing says it."""

    name: str | None
    found_in: str | None


def move_source_card(folder: Path) -> bool:
    """Keep a card that quantizing copied from the source as w4afp8/source-card.md; True when there is one.

    It describes other bytes, so it must not stand where the Hub shows this checkpoint's card.
    """
    card, kept = folder / CARD, folder / SOURCE_CARD
    if card.is_file() and not is_ours(card):
        kept.parent.mkdir(exist_ok=True)
        atomic.write_bytes(kept, card.read_bytes())
        card.unlink()
    return kept.is_file()


def is_ours(card: Path) -> bool:
    return OURS in card.read_text(encoding="utf-8", errors="replace")


def front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML head of a card; nothing when there is no card, no head, or none that is a mapping."""
    if not path.is_file():
        return {}
    found = FRONT.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        content = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def carried_metadata(folder: Path) -> dict[str, Any]:
    """What stays true of quantized weights: licence, language, library, task.  Needs `move_source_card` first."""
    head = front_matter(folder / SOURCE_CARD)
    return {key: head[key] for key in CARRIED if isinstance(head.get(key), str | list)}


def licence_of(folder: Path) -> Licence:
    """From the source's card, else from a licence file that opens with a known title."""
    head = front_matter(folder / SOURCE_CARD)
    if isinstance(head.get("license"), str):
        return Licence(head["license"], "the source's card")
    files = sorted(path for path in folder.glob("LICEN[CS]E*") if path.is_file())
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace").lstrip()
        for opening, name in KNOWN:
            if opening.match(text):
                return Licence(name, path.name)
    return Licence("other", files[0].name) if files else Licence(None, None)
