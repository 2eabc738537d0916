"""report.json for machines and report.html for people, from the same facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from w4afp8._version import __version__
from w4afp8.checkpoint import atomic
from w4afp8.report import figures, summary
from w4afp8.report.facts import FOLDER, Facts, Said, gather
from w4afp8.report.reproduce import reproduce

TEMPLATE = "page.html.jinja"


class Paths(NamedTuple):
    """Where the two reports are."""

    json: Path
    html: Path


def write(folder: Path, *, validation: Said | None = None, evaluation: Said | Sequence[Said] | None = None) -> Paths:
    """Write w4afp8/report.json and w4afp8/report.html into a quantized directory.

    A validation or evaluation (one or several) that is not given is the one that was saved there last.
    Raises: CheckpointError when a file of the directory is no JSON object.
    """
    facts = gather(folder, validation, evaluation)
    own = folder / FOLDER
    own.mkdir(parents=True, exist_ok=True)
    paths = Paths(own / "report.json", own / "report.html")
    atomic.write_json(paths.json, to_json(facts))
    atomic.write_bytes(paths.html, page(facts).encode())
    return paths


def to_json(facts: Facts) -> dict[str, Any]:
    """The machine's report: the page's figures first, then everything they come from."""
    said = summary.verdict(facts)
    record = {key: value for key, value in facts.record.items() if key != "digests"}
    return {
        "name": facts.name,
        "verdict": {"word": said.word, "sentence": said.sentence},
        "brief": summary.brief(facts),
        "summary": [asdict(tile) for tile in summary.tiles(facts)],
        "bytes_in": facts.bytes_in,
        "bytes_out": facts.bytes_out,
        "coverage": facts.coverage,
        "error_beside_plain_rounding": facts.gain,
        "reproduce": reproduce(facts),
        "evaluations": [_without_sequences(item) for item in facts.evaluations],
        "validation": facts.validation,
        "record": record,
    }


def page(facts: Facts) -> str:
    """The whole page as one string: no script, nothing fetched."""
    return template().render(
        facts=facts,
        version=__version__,
        verdict=summary.verdict(facts),
        brief=summary.brief(facts),
        timing=summary.timing(facts),
        tiles=summary.tiles(facts),
        checks=summary.checks(facts),
        roles=summary.roles(facts),
        worst=summary.worst_experts(facts),
        folds=summary.folds(facts),
        reproduce=reproduce(facts),
        provenance=summary.provenance(facts),
        error_by_layer=figures.error_by_layer(facts),
        error_maps=figures.error_maps(facts),
        token_map=figures.token_map(facts),
        activations=figures.activation_ranges(facts),
        scales=figures.scale_histogram(facts),
        codes=figures.code_histogram(facts),
        seconds=figures.seconds_by_layer(facts),
        levels=figures.LEVELS,
    )


@cache
def template() -> Template:
    """The page's template, compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("w4afp8.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _without_sequences(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key != "per_sequence"}
