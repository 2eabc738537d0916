"""Recipe: typed, frozen, every key known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from w4afp8.errors import RecipeError, raise_all


class Strict(BaseModel):
    """Refuses unknown keys, silent coercions of text into numbers, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Scheme(StrEnum):
    """What the experts become."""

    W4AFP8 = "W4AFP8"  # int4, a bfloat16 scale per 128 inputs, FP8 activations
    MXFP4 = "MXFP4"  # e2m1, a power of two per 32 inputs


# The checkpoint format that a scheme is written in when the recipe names none.
FORMAT_OF = {Scheme.W4AFP8: "sglang_w4afp8", Scheme.MXFP4: "compressed_tensors_mxfp4"}


class Mtp(StrEnum):
    """What becomes of multi-token-prediction layers."""

    AUTO = "auto"  # what the output format's engines can load
    QUANTIZE = "quantize"
    NATIVE = "native"  # experts stay in the source's format
    DROP = "drop"


class Resume(StrEnum):
    """What to do with an unfinished output (GPTQModel's words)."""

    AUTO = "auto"  # go on when there is one
    REQUIRED = "required"  # refuse to begin anew
    NEVER = "never"  # discard it


class MethodChoice(Strict):
    """A file of quantize/ and its options; each method checks its own."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Calibration(Strict):
    """Which text the model reads."""

    data: tuple[str, ...] = Field(("bundled",), min_length=1, strict=False)
    tokens: Annotated[int, Field(ge=1)] = 65536
    sequence: Annotated[int, Field(ge=2)] = 512
    seed: int = 0


class Coverage(Strict):
    """When experts saw too little; never changes a byte, so it may change between a run and its resumption."""

    min_tokens: Annotated[int, Field(ge=0)] = 1
    allow_cold: bool = False


class Activations(Strict):
    """The static FP8 scale of expert inputs."""

    headroom: Annotated[float, Field(ge=1)] = 2.0


class Output(Strict):
    """How the checkpoint is laid out on disk."""

    format: str = "sglang_w4afp8"
    shard_gb: Annotated[float, Field(gt=0)] = 5.0


class Survey(StrEnum):
    """What is looked at before the first byte is written."""

    FORWARD = "forward"  # every value of the source, and a calibration pass: every refusal comes first
    VALUES = "values"  # every value of the source
    NONE = "none"  # headers only


class Compute(Strict):
    """Where arithmetic runs."""

    device: str = "cpu"
    threads: Annotated[int, Field(ge=0)] = 0  # 0: as many as torch chooses
    survey: Survey = Field(Survey.FORWARD, strict=False)


class Recipe(Strict):
    """One flat file that says what a run does; written into the output as it was understood."""

    version: Literal[1] = 1
    about: str = ""
    scheme: Scheme = Field(Scheme.W4AFP8, strict=False)
    targets: tuple[str, ...] = Field((r"re:.*\.mlp\.experts\.\d+\.(gate|up|down)_proj",), min_length=1, strict=False)
    ignore: tuple[str, ...] = Field((), strict=False)
    mtp: Mtp = Field(Mtp.AUTO, strict=False)
    method: MethodChoice = MethodChoice(name="awq")
    calibration: Calibration = Calibration()
    coverage: Coverage = Coverage()
    activations: Activations = Activations()
    output: Output = Output()
    compute: Compute = Compute()

    @model_validator(mode="before")
    @classmethod
    def _format_follows_the_scheme(cls, content: Any) -> Any:
        """Where the output's format is not said, the scheme's own."""
        if not isinstance(content, Mapping) or content.get("scheme") not in list(FORMAT_OF):
            return content
        output = content.get("output", {})
        if not isinstance(output, Mapping) or "format" in output:
            return content
        return {**content, "output": {**output, "format": FORMAT_OF[Scheme(content["scheme"])]}}

    @field_validator("targets", "ignore")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    def chosen(self, modules: Iterable[str]) -> set[str]:
        """The modules (weight names without `.weight`) that `targets` take and `ignore` does not.

        A pattern is an exact name, or `re:` and a regular expression that must match the whole name (llm-compressor).
        Raises: RecipeError naming every pattern that matches nothing.
        """
        known = list(modules)
        taken: set[str] = set()
        unmatched: list[str] = []
        for patterns, add in ((self.targets, True), (self.ignore, False)):
            for pattern in patterns:
                matches = {name for name in known if matches_pattern(pattern, name)}
                if not matches:
                    unmatched.append(
                        f"{'targets' if add else 'ignore'}: {pattern!r} matches none of {len(known)} matrices"
                    )
                taken = taken | matches if add else taken - matches
        raise_all(unmatched, RecipeError, "patterns of the recipe match nothing")
        return taken


def matches_pattern(pattern: str, name: str) -> bool:
    """Whether an exact name or a `re:` pattern means `name`."""
    return re.fullmatch(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name
