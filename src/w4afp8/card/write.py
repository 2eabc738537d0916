"""README.md of a quantized directory, from its record, its validation and its evaluations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from w4afp8 import layouts
from w4afp8._version import __version__
from w4afp8.calibration import BUNDLED
from w4afp8.card import engines, source
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.lineage import SOURCE_PROOF
from w4afp8.checkpoint.reader import read_json
from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.layouts import _record as layout_record
from w4afp8.report.facts import FOLDER, Facts, gather
from w4afp8.report.reproduce import reproduce
from w4afp8.report.scales import number, percent, size
from w4afp8.report.summary import plural
from w4afp8.validate import gate
from w4afp8.validate.seal import CARD, VALIDATION, FileSeal

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEMPLATE = "card.md.jinja"
MTP = {"quantize": "kept, its experts in 4 bits", "native": "kept as the source has it", "drop": "dropped"}


@dataclass(frozen=True, slots=True)
class Card:
    """What was written, and what could not be said."""

    path: Path
    base_model: str | None
    licence: str | None
    state: str
    source_card_kept: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "base_model": self.base_model, "license": self.licence, "state": self.state,
            "source_card_kept": self.source_card_kept,
        }  # fmt: skip


def write(
    folder: Path,
    *,
    base_model: str | None = None,
    model: str | None = None,
    forced: str | None = None,
    verdict: gate.Gate | None = None,
) -> Card:
    """Write README.md.  `model` is the name that serve commands use; `forced` why an unproven one is published.

    `verdict` is what the gate says of the directory, for who has asked it already: asking may read every byte.
    `base_model` stays what an earlier card of ours said, or the Hub id that the validation compared with.
    Raises: CheckpointError when there is no record to take facts from.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory; give the directory of a quantized checkpoint")
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise RecipeError(f"--base-model {base_model}: expected ORG/NAME, as the Hub names it")
    verdict = verdict or gate.state(folder)
    facts = gather(folder, None, None, verdict)
    if not facts.record:
        raise CheckpointError(f"{folder}: found no {FOLDER}/record.json; a card is made of what the run recorded")
    old = folder / CARD
    said_before = source.front_matter(old).get("base_model") if old.is_file() and source.is_ours(old) else None
    kept = source.move_source_card(folder)
    base = base_model or said_before or _compared_with(folder, verdict.state)
    licence = source.licence_of(folder)
    text = _render(
        facts, licence=licence, base_model=base, kept=kept, verdict=verdict, forced=forced, model=model or facts.name,
        metadata=metadata(facts, base, licence.name, source.carried_metadata(folder)),
    )  # fmt: skip
    atomic.write_bytes(folder / CARD, text.encode())
    return Card(folder / CARD, base, licence.name, verdict.state.value, kept)


def metadata(facts: Facts, base: str | None, licence: str | None, carried: Mapping[str, Any]) -> dict[str, Any]:
    """The card's YAML head, in the Hub's own vocabulary."""
    names = facts.config.get("architectures")
    causal = any(str(name).endswith("ForCausalLM") for name in names) if isinstance(names, list) else False
    words = [facts.layout["layout"]] if facts.layout else [name.lower() for name in engines.names(_readers(facts))]
    head: dict[str, Any] = {"license": licence or "unknown"}
    head |= {"pipeline_tag": "text-generation"} if causal else {}
    head |= {key: value for key, value in carried.items() if key != "license"}
    head |= {"base_model": base, "base_model_relation": "quantized"} if base else {}
    return head | {"tags": ["w4afp8", *engines.tags(_format(facts)), "moe", *words]}


@cache
def template() -> Template:
    """The card's template, compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("w4afp8.card", "."),
        autoescape=False,  # Markdown, not HTML; the Hub cleans what it shows
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE)


def _render(facts: Facts, *, metadata: Mapping[str, Any], verdict: gate.Gate, model: str, **more: Any) -> str:
    recipe = facts.record.get("recipe") or {}
    readers = _readers(facts)
    return template().render(
        head=yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True),
        facts=facts,
        format=_format(facts),
        quantized=_was_quantized(facts),
        bits=engines.bits(_format(facts) or ""),
        verdict=verdict,
        classes=_classes(facts),
        readers=readers,
        serve=[] if facts.layout else engines.commands(readers, model),
        layout=facts.layout,
        static_in_layout=facts.layout is not None and _has_static_scales(str(facts.layout["layout"])),
        calibration=_calibration(facts, recipe),
        headroom=(recipe.get("activations") or {}).get("headroom"),
        scales=engines.activation_scales(_format(facts)),
        mtp=_mtp(facts),
        files=_sums(verdict.files),
        reproduce=reproduce(facts),
        tool=facts.record.get("tool") or {},
        version=__version__,
        marker=source.OURS,
        size=size, number=number, percent=percent, plural=plural,
        **more,
    )  # fmt: skip


def _was_quantized(facts: Facts) -> bool:
    """Whether a run rounded the experts; converting alone rounds nothing."""
    return facts.conversion is None or bool(facts.record.get("method"))


def _has_static_scales(layout: str) -> bool:
    """Whether a layout holds static activation scales; one that this program does not know may."""
    return layout not in layouts.names() or layouts.get(layout).input_scale is not None


def _readers(facts: Facts) -> tuple[str, ...]:
    """The engines and releases that read these bytes."""
    return (str(facts.layout["read_by"]),) if facts.layout else engines.read_by(_format(facts))


def _format(facts: Facts) -> str | None:
    found = facts.record.get("format")
    return found if isinstance(found, str) else None


def _classes(facts: Facts) -> list[dict[str, Any]]:
    rows = []
    for role, row in facts.roles.items():
        quantized = row.get("bytes_in") != row.get("bytes_out") and _was_quantized(facts)
        stored = str((_format(facts) if quantized else None) or row.get("format") or "")
        exact = facts.record.get("bits_per_weight")
        counted = quantized and isinstance(exact, int | float) and engines.has_scales(stored)
        shown = f"{exact:g} with scales" if counted else engines.bits(stored)
        rows.append(
            {"role": role, "format": stored or "unknown", "bits": shown, "quantized": quantized,
             "before": size(row.get("bytes_in")), "after": size(row.get("bytes_out"))}
        )  # fmt: skip
    return sorted(rows, key=lambda row: not row["quantized"])


def _calibration(facts: Facts, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Data by name only: where a file stood on somebody's disk is nobody's business."""
    asked = recipe.get("calibration") or {}
    words = {BUNDLED: "the text that comes with w4afp8"}
    local = [Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else words.get(name, name)
             for name in map(str, asked.get("data") or [])]  # fmt: skip
    return {**asked, **(facts.record.get("calibration") or {}), "data": local, "coverage": facts.coverage}


def _mtp(facts: Facts) -> str:
    layers = facts.record.get("mtp_layers")
    if layers == 0:
        return "the source has none"
    state = facts.record.get("mtp")
    known = MTP.get(state, "unknown") if isinstance(state, str) else "unknown"
    return f"{known} ({plural(layers, 'layer')})" if isinstance(layers, int) else known


def _sums(files: Mapping[str, FileSeal]) -> str | None:
    """What `LC_ALL=C sha256sum *.safetensors | sha256sum` prints; None while no digest is known to hold."""
    weights = sorted((name.encode(), seal.sha256) for name, seal in files.items()
                     if name.endswith(".safetensors") and "/" not in name)  # fmt: skip
    lines = b"".join(digest.encode() + b"  " + name + b"\n" for name, digest in weights)
    return hashlib.sha256(lines).hexdigest() if weights else None


def _compared_with(folder: Path, state: gate.State) -> str | None:
    """The Hub id of the source that the validation proved this to be, itself or by the proof of what it was made of."""
    if state is not gate.State.PROVEN:
        return None
    kept = (folder / layout_record.FILES / VALIDATION, folder / SOURCE_PROOF, folder / VALIDATION)
    named = ((read_json(path).get("source") or {}).get("hub_id") for path in kept if path.is_file())
    return next((found for found in named if isinstance(found, str)), None)
