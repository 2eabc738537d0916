"""Quantize one checkpoint.  `quantize` is the whole program; read it first.

source -> plan (headers only; refusals happen here) -> survey (every value, every expert's tokens) -> layer by layer:
calibrate, fold, quantize, write -> publish (index and config last).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w4afp8 import _version, families, quantize
from w4afp8.calibration import BUNDLED, BUNDLED_TEXT
from w4afp8.calibration.tokens import CheckpointTokenizer, choose_sequences, digest
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.journal import Journal
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.convert import output, resources
from w4afp8.convert.execute import UnitWriter
from w4afp8.convert.plan import Plan, Unit
from w4afp8.convert.plan_quantize import make_plan, refuse_quantized
from w4afp8.convert.publish import publish
from w4afp8.convert.resources import Needs
from w4afp8.convert.state import StateFiles
from w4afp8.convert.survey import Identity, headers_identity, survey_values
from w4afp8.errors import RecipeError, Stopped
from w4afp8.events import EventLog, Listener, ignore
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Dimensions
from w4afp8.model.decoder import Decoder
from w4afp8.model.weights import Weights
from w4afp8.quantize._coverage import check_coverage, count_tokens
from w4afp8.quantize._layer import quantize_layer
from w4afp8.quantize._method import Method
from w4afp8.recipes._load import render
from w4afp8.recipes._recipe import Recipe, Resume, Survey
from w4afp8.record import RECORD_FOLDER, write_record

STATE = "state"


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is decided before the first byte is written."""

    reader: CheckpointReader
    recipe: Recipe  # as it was understood: every option of the method written out
    method: Method
    plan: Plan
    tokens_BS: Tensor
    needs: Needs
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / RECORD_FOLDER


def prepare(model: Path, recipe: Recipe, out: Path, data: Callable[[str], Path] = Path) -> Run:
    """Read the headers, make the plan, choose the calibration tokens; nothing is written.

    `data` turns a data source of the recipe into a local path (the command line fetches Hub datasets with it).
    Raises: CheckpointError, RecipeError, CalibrationError, each listing every problem it found.
    """
    reader = CheckpointReader(model)
    recipe, method = quantize.resolve(recipe)
    family = families.of(reader.config)
    dimensions = families.decodable(family, reader.config)
    refuse_quantized(family, dimensions, reader.specs, recipe.output.format)
    inventory = take_inventory(family, dimensions, reader.specs)
    longest, sequence = dimensions.longest, recipe.calibration.sequence
    if longest is not None and sequence > longest:
        raise RecipeError(
            f"calibration.sequence is {sequence}; up to {longest} tokens attention sees every position, beyond them "
            "the model's indexer chooses, which is not computed here"
        )
    plan = make_plan(family, dimensions, reader.config, inventory, recipe)
    sources = [BUNDLED_TEXT if name == BUNDLED else data(name) for name in recipe.calibration.data]
    tokens_BS = choose_sequences(
        sources,
        CheckpointTokenizer(model),
        tokens=recipe.calibration.tokens,
        sequence=recipe.calibration.sequence,
        seed=recipe.calibration.seed,
        vocabulary=dimensions.vocabulary,
    )
    _check_device(recipe.compute.device)
    needs = resources.estimate(plan, method, tokens_BS.numel(), recipe.calibration.sequence)
    return Run(reader, recipe, method, plan, tokens_BS, needs, out)


def run(
    prepared: Run,
    *,
    resume: Resume = Resume.AUTO,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do what was prepared; the output's record.

    Raises: any W4AFP8Error; Stopped when `stop` said so after a finished layer.  Run again to go on.
    """
    journal = Journal(prepared.folder / STATE)
    if resume is Resume.NEVER:
        output.discard(prepared.out, prepared.reader.folder, prepared.plan, journal)
    output.check(prepared.out, prepared.reader.folder, RECORD_FOLDER, journal, resume)
    resources.check(prepared.needs, prepared.out)
    if prepared.recipe.compute.threads:
        torch.set_num_threads(prepared.recipe.compute.threads)

    surveying = _stoppable(listener, stop)
    identity = _survey_source(prepared, journal, surveying)
    fingerprint = _fingerprint(prepared, identity)
    if journal.fingerprint is None:
        _survey_coverage(prepared, surveying)
    resumed = journal.open(fingerprint)
    with journal.locked():
        output.check_finished(prepared.out, prepared.plan, journal)
        atomic.write_bytes(prepared.folder / "recipe.yaml", render(prepared.recipe).encode())
        log = EventLog(prepared.folder / "run.jsonl", listener)
        start = "resume" if resumed else "start"
        log({"event": start, "version": _version.__version__, "units": len(prepared.plan.units)})
        with torch.inference_mode():
            _run_units(prepared, journal, log, stop)
        record = _finish(prepared, journal, fingerprint)
    log({"event": "done", "bytes": prepared.plan.total_bytes, "peak_rss_bytes": resources.peak_resident_bytes()})
    return record


def _finish(prepared: Run, journal: Journal, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Every unit is written: make the output a checkpoint, its record first, config.json last."""
    records = {unit.name: journal.record(unit.name) or {} for unit in prepared.plan.units}
    scales = {r["layer"]: r["evidence"]["input_scale"] for r in records.values() if r.get("evidence")}
    record = write_record(prepared.folder, prepared.plan, prepared.recipe, fingerprint, records, journal.folder)
    publish(prepared.out, prepared.plan, prepared.reader, scales)
    journal.discard()
    return record


def _run_units(prepared: Run, journal: Journal, log: Listener, stop: Callable[[], bool]) -> None:
    plan, states = prepared.plan, StateFiles(journal.folder)
    decoder = decoder_of(prepared)
    current: Tensor | None = None
    before = ""
    for unit in plan.units:
        if journal.record(unit.name) is None:
            if stop():
                raise Stopped(
                    f"stopped before {unit.name}; everything before it is kept, run the same command to go on"
                )
            if current is None and unit.layer is not None:
                current = (
                    states.load(before).to(decoder.weights.device) if unit.layer else decoder.embed(prepared.tokens_BS)
                )
            began = time.monotonic()
            current, record = _run_unit(prepared, decoder, unit, current, states, log)
            if unit.layer is not None and current is not None:
                states.save(unit.name, current)
            journal.finish(unit.name, record)
            states.drop(before)
            log(_unit_event(unit, record, time.monotonic() - began))
        before = unit.name


def _run_unit(
    prepared: Run, decoder: Decoder, unit: Unit, current: Tensor | None, states: StateFiles, log: Listener
) -> tuple[Tensor | None, dict[str, Any]]:
    """Write one unit; the states after it and its journal record."""
    d, layer = prepared.plan.dimensions, unit.layer
    record: dict[str, Any] = {"layer": layer, "evidence": None}
    folded: dict[str, Tensor] = {}
    with UnitWriter(prepared.out, unit) as writer:
        if layer is not None and current is not None:
            if d.is_moe(layer) and _is_quantized(prepared.plan, unit, layer):
                if d.is_mtp(layer):
                    current = decoder.mtp_input(layer, prepared.tokens_BS[:, layer - d.layers :], current)
                result = quantize_layer(
                    decoder,
                    layer,
                    current,
                    prepared.method,
                    lambda name, weight: writer.put_weight(name, prepared.plan.target.expert_weight, weight),
                    headroom=prepared.recipe.activations.headroom,
                    progress=lambda done, of: log({"event": "progress", "unit": unit.name, "done": done, "of": of}),
                )
                folded = result.folded.tensors
                states.record(unit.name, layer, result.recorded)
                record["evidence"] = {**result.evidence, "folded": sorted(folded)}
            elif layer < d.layers:
                decoder.step(layer, current)
        writer.copy_rest(prepared.reader, folded)
        writer.recode(decoder.weights, prepared.plan.target.linear_weight, folded)
    return current, {**record, "digests": writer.digests}


def _is_quantized(plan: Plan, unit: Unit, layer: int) -> bool:
    """Whether the layer's experts are made, not copied."""
    stem = f"{plan.family.expert(plan.dimensions, layer, 0)}."
    return not any(name.startswith(stem) for name in unit.copies)


def _unit_event(unit: Unit, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    event = {"event": "unit", "unit": unit.name, "layer": unit.layer, "seconds": round(seconds, 3)}
    evidence = record["evidence"]
    if evidence:
        counts = sorted(evidence["tokens_per_expert"])
        event |= {
            "error": evidence["error"],
            "tokens_min": counts[0],
            "tokens_median": counts[len(counts) // 2],
            "fold": evidence["fold"].get("kept", False),
        }
    return event


def decoder_of(prepared: Run) -> Decoder:
    plan = prepared.plan
    weights = Weights(prepared.reader, plan.inventory, prepared.recipe.compute.device)
    assert isinstance(plan.dimensions, Dimensions)  # `prepare` asked for a family with a forward pass
    return Decoder(plan.family, plan.dimensions, weights)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"compute.device {name!r} is no torch device; expected cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            f"compute.device is {name!r}, but torch finds no CUDA device; use cpu or install torch with CUDA"
        )


def _stoppable(listener: Listener, stop: Callable[[], bool]) -> Listener:
    """A listener that ends the survey when asked: it may take an hour, and nothing of it is lost but time."""

    def listen(event: dict[str, Any]) -> None:
        listener(event)
        if stop():
            raise Stopped("stopped while the source was surveyed; run the same command to begin it again")

    return listen


def _survey_source(prepared: Run, journal: Journal, listener: Listener) -> Identity:
    if prepared.recipe.compute.survey is Survey.NONE:
        return headers_identity(prepared.reader)
    known = (journal.fingerprint or {}).get("source", {}).get("shards", {})
    total = sum(prepared.reader.shard_path(shard).stat().st_size for shard in prepared.reader.shards)
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += count
        listener({"event": "progress", "unit": "source values", "done": seen, "of": total})

    found = survey_values(prepared.reader, known, progress)
    listener({"event": "surveyed", "bytes": total})
    return found


def _survey_coverage(prepared: Run, listener: Listener) -> None:
    recipe = prepared.recipe
    if recipe.compute.survey is not Survey.FORWARD or recipe.coverage.allow_cold:
        return
    with torch.inference_mode():
        counts = count_tokens(
            decoder_of(prepared),
            prepared.tokens_BS,
            lambda done, of: listener({"event": "progress", "unit": "calibration coverage", "done": done, "of": of}),
        )
    check_coverage(counts, recipe.coverage.min_tokens, allow_cold=False)
    listener({"event": "covered", "tokens_min": min((min(c) for c in counts.values()), default=0)})


def _fingerprint(prepared: Run, identity: Identity) -> dict[str, Any]:
    """What the output's bytes depend on.  File times are kept only to save reading the source again."""
    recipe = prepared.recipe.model_dump(mode="json", exclude={"about": True, "coverage": True, "compute": {"survey"}})
    return {
        "tool": {"w4afp8": _version.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()},
        "recipe": recipe,
        "source": {"config": prepared.reader.config, "shards": identity},
        "calibration": {"tokens": prepared.tokens_BS.numel(), "sha256": digest(prepared.tokens_BS)},
    }
