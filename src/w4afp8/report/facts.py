"""What the report knows: the run's record, a validation, evaluations.  Every field may be missing; none is guessed.

The first three are plain JSON, as record.json, validation.json and evaluation.json hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from w4afp8.checkpoint.reader import CONFIG, read_json
from w4afp8.errors import CheckpointError
from w4afp8.families import LAYOUT_METHOD
from w4afp8.validate import gate

FOLDER = "w4afp8"
Json = Mapping[str, Any]


class ToJson(Protocol):
    """A ValidationReport or an EvaluationReport."""

    def to_json(self) -> dict[str, Any]: ...


Said = Json | ToJson
# What the page and the card say of a runtime layout; `layouts._record.Record.block` writes them.
LAYOUT_FIELDS = (
    "layout", "layout_version", "read_by", "tensor_parallel", "expert_parallel", "w13", "canonical_sha256",
)  # fmt: skip
EVALUATION_FIELDS = ("kl", "perplexity", "source_perplexity", "top1_agreement")


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the page and report.json are made of."""

    name: str
    config: Json
    record: Json
    validation: Json | None
    evaluations: list[Json]
    events: list[Json] = field(default_factory=list)
    stale: tuple[str, ...] = ()  # what changed after the saved validation
    conversion: Json | None = None  # what `convert` did, when it made the directory
    tolerance: float = 0.0  # how far the scales of a layout may stand from the true ones, relative

    @property
    def layers(self) -> list[Json]:
        """The recorded layers, in order."""
        return sorted(self.record.get("layers") or [], key=lambda layer: layer.get("layer", 0))

    @property
    def model_layers(self) -> int | None:
        value = self.config.get("num_hidden_layers")
        return value if isinstance(value, int) else None

    @property
    def layout(self) -> Json | None:
        """What config.json says of the runtime layout that the directory has; None for a checkpoint."""
        return self.config["quantization_config"] if _is_layout(self.config) else None

    def layer_name(self, layer: int) -> str:
        """Its number; the layers after the model's own are for multi-token prediction."""
        return f"{layer} MTP" if self.model_layers is not None and layer >= self.model_layers else str(layer)

    @property
    def bytes_in(self) -> int | None:
        """Of what was quantized, also where that was converted afterwards; of a publisher's, what was converted."""
        compared, recorded = (self.validation or {}).get("bytes_source"), self._sum("bytes_in")
        found = recorded or compared if self.conversion and self.record.get("method") else compared or recorded
        return int(found) if found else None

    @property
    def bytes_out(self) -> int | None:
        found = (self.validation or {}).get("bytes_out") or self._sum("bytes_out")
        return int(found) if found else None

    def _sum(self, key: str) -> int:
        return sum(role.get(key) or 0 for role in self.roles.values())

    @property
    def roles(self) -> dict[str, Json]:
        found = self.record.get("tensors_by_role")
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def coverage(self) -> dict[str, Any] | None:
        """Tokens per expert over all layers."""
        counts = [(c, row["layer"], e) for row in self.layers for e, c in enumerate(row.get("tokens_per_expert") or [])]
        if not counts:
            return None
        fewest = min(counts)
        return {
            "min": fewest[0],
            "min_layer": fewest[1],
            "min_expert": fewest[2],
            "median": median(count for count, _, _ in counts),
            "experts": len(counts),
            "none": sum(count == 0 for count, _, _ in counts),
        }

    @property
    def gain(self) -> float | None:
        """The chosen method's error as a share of plain rounding's, the geometric mean over layers."""
        ratios = [pair[1] / pair[0] for pair in map(errors, self.layers) if pair and pair[0] > 0 and pair[1] > 0]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None

    @property
    def seconds(self) -> dict[int, float]:
        """layer -> seconds that it took, from the run's events."""
        return {
            event["layer"]: event["seconds"]
            for event in self.events
            if event.get("event") == "unit" and isinstance(event.get("layer"), int) and "seconds" in event
        }


def errors(entry: Json) -> tuple[float, float] | None:
    """(plain rounding, chosen) of a layer or an expert's site."""
    found = entry.get("error", entry)
    if not isinstance(found, Mapping):
        return None
    pair = found.get("rtn"), found.get("chosen")
    if isinstance(pair[0], int | float) and isinstance(pair[1], int | float):
        return float(pair[0]), float(pair[1])
    return None


def gather(
    folder: Path,
    validation: Said | None,
    evaluation: Said | Sequence[Said] | None,
    verdict: gate.Gate | None = None,
) -> Facts:
    """Read what the directory holds; a validation or evaluation that is not given is the one saved there last.

    `verdict` is what the gate says of that one, for who has asked it already: asking may read every byte.
    Raises: CheckpointError when config.json or record.json is there and no JSON object, or when config.json says that
    this is a runtime layout and not which one.
    """
    own = folder / FOLDER
    stale: tuple[str, ...] = ()
    if validation is None:
        verdict = verdict or gate.state(folder)
        stale = verdict.why if verdict.state is gate.State.STALE else ()
        validation = _read(own / "validation.json") or (_read(own / "report.json") or {}).get("validation")
    if evaluation is None:
        evaluation = _read(own / "evaluation.json") or []
    listed = list(evaluation) if isinstance(evaluation, Sequence) else [evaluation]
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if _is_layout(config) and (missing := [key for key in LAYOUT_FIELDS if key not in config["quantization_config"]]):
        raise CheckpointError(
            f"{folder / CONFIG}: quantization_config lacks {', '.join(missing)} of the runtime layout"
        )
    return Facts(
        name=folder.resolve().name,
        config=config,
        record=read_json(own / "record.json") if (own / "record.json").exists() else {},
        validation=None if validation is None else {k: v for k, v in plain(validation).items() if k != "seal"},
        evaluations=[item for item in map(plain, listed) if all(name in item for name in EVALUATION_FIELDS)],
        events=_events(own / "run.jsonl"),
        stale=stale,
        conversion=_read(own / "conversion.json"),
        tolerance=_tolerance(own / "layout.json"),
    )


def _is_layout(config: Json) -> bool:
    found = config.get("quantization_config")
    return isinstance(found, Mapping) and found.get("quant_method") == LAYOUT_METHOD


def plain(said: Said) -> Json:
    """A report as JSON, whether it is one already or not."""
    return said if isinstance(said, Mapping) else said.to_json()


def _read(path: Path) -> Any:
    """A saved report; an unreadable one counts as absent, because it can be made again."""
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def _tolerance(path: Path) -> float:
    found = _read(path)
    said = found.get("tolerance") if isinstance(found, dict) else None
    return float(said) if isinstance(said, int | float) else 0.0


def _events(path: Path) -> list[Json]:
    if not path.is_file():
        return []
    found: list[Json] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):  # a line cut short by a crash; the rest still tells
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
