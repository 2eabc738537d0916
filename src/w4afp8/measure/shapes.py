"""What is measured: the GEMMs and the layer of a model, or of a rank that holds a part of it.

Letters: H hidden, I an expert's intermediate size, E experts here, R experts routed over, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w4afp8 import families
from w4afp8.checkpoint.reader import CONFIG, read_json
from w4afp8.errors import RecipeError, raise_all
from w4afp8.families._spec import Dimensions
from w4afp8.registry import did_you_mean

TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROWS_STEP, COLS_STEP = 64, 128  # what the kernels need N and K to be multiples of


@dataclass(frozen=True, slots=True)
class Gemm:
    """One product of a layer: [T, cols] x [rows, cols] of each of `experts`; `top_k` 0 is a dense layer."""

    name: str
    rows: int
    cols: int
    experts: int = 1
    routed: int = 1  # experts that the router chooses from, over all ranks
    top_k: int = 0
    gathers: bool = False  # x is one row a token, not one a choice
    least: int = -8  # of the weight's codes, the largest is 7; a peer may be faster where it is -7


@dataclass(frozen=True, slots=True)
class Layer:
    """The routed experts of one layer on one rank."""

    name: str
    hidden: int
    inner: int
    experts: int
    routed: int
    top_k: int

    @property
    def gemms(self) -> tuple[Gemm, Gemm]:
        """gate_up [2I, H] and down [H, I]."""
        e, r, k = self.experts, self.routed, self.top_k
        return (
            Gemm(f"{self.name}.gate_up", 2 * self.inner, self.hidden, e, r, k, True),
            Gemm(f"{self.name}.down", self.hidden, self.inner, e, r, k),
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """A named problem: a layer of experts, dense projections, or both."""

    name: str
    layer: Layer | None
    dense: tuple[Gemm, ...] = ()

    @property
    def gemms(self) -> tuple[Gemm, ...]:
        return (*(self.layer.gemms if self.layer else ()), *self.dense)


def _layer(name: str, *sizes: int) -> Shape:
    return Shape(name, Layer(name, *sizes))


# What kernels are compared on: DeepSeek-R1 whole, one of its ranks, a GPT-OSS-like layer, R1's dense projections.
NAMED: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        _layer("R1", 7168, 2048, 256, 256, 8),
        _layer("EP8", 7168, 2048, 32, 256, 8),
        _layer("TP8", 7168, 256, 256, 256, 8),
        _layer("OSS", 4096, 2048, 256, 256, 6),
        Shape(
            "DENSE",
            None,
            (
                Gemm("dense.q_b", 24576, 1536),
                Gemm("dense.kv_b", 32768, 512),
                Gemm("dense.o", 7168, 16384),
                Gemm("dense.dense_gate_up", 36864, 7168),
                Gemm("dense.dense_down", 7168, 18432),
            ),
        ),
    )
}
# Which side of a dense projection tensor parallelism cuts.
CUT_COLS = ("o", "dense_down")


def named(name: str) -> Shape:
    """Raises: RecipeError when no shape has that name."""
    known = {key.lower(): shape for key, shape in NAMED.items()}
    if name.lower() not in known:
        raise RecipeError(
            f"unknown shape {name!r}{did_you_mean(name.upper(), tuple(NAMED))}; known: {', '.join(NAMED)}"
        )
    return known[name.lower()]


def of_model(path: Path) -> Shape:
    """The shape that a checkpoint directory's config.json, or the file itself, describes.

    Raises: CheckpointError for a config that no model family reads, RecipeError when there is no such file.
    """
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(f"--model {path}: found no {CONFIG} there, expected a checkpoint directory or its {CONFIG}")
    return of_config(read_json(file), (path if path.is_dir() else path.parent).resolve().name)


def of_config(config: Mapping[str, Any], name: str) -> Shape:
    """Experts of a model, and dense projections where its family says how they are built."""
    d = families.of(config).dimensions(config)
    layer = Layer(name, d.hidden, d.expert_intermediate, d.experts, d.experts, d.experts_per_token)
    dense = _dense(d).items() if isinstance(d, Dimensions) else ()
    return Shape(name, layer, tuple(Gemm(f"{name}.{part}", n, k) for part, (n, k) in dense))


def _dense(d: Dimensions) -> dict[str, tuple[int, int]]:
    """N and K of latent attention's projections and of the dense MLP, gate and up in one."""
    found = {
        "q_b" if d.q_lora else "q": (d.heads * d.query_head, d.q_lora or d.hidden),
        "kv_b": (d.heads * (d.nope + d.value_head), d.kv_lora),
        "o": (d.hidden, d.heads * d.value_head),
    }
    if d.dense_layers:
        found["dense_gate_up"] = (2 * d.dense_intermediate, d.hidden)
        found["dense_down"] = (d.hidden, d.dense_intermediate)
    return found


def split(shape: Shape, tp: int, ep: int) -> Shape:
    """One rank's part: `tp` cuts every matrix, `ep` the experts; the router still chooses from all of them.

    Raises: RecipeError naming each size that does not divide, or that the kernels could not run afterwards.
    """
    problems: list[str] = []

    def part(what: str, size: int, by: int, step: int) -> int:
        if size % by:
            problems.append(f"{what} is {size}, no multiple of {by}")
        elif size // by % step:
            problems.append(f"{what} is {size // by} on a rank, no multiple of {step}")
        return size // by

    suffix = (f"/tp{tp}" if tp > 1 else "") + (f"/ep{ep}" if ep > 1 else "")
    layer = shape.layer
    if layer:
        inner = part(f"{layer.name}: an expert's intermediate size", layer.inner, tp, COLS_STEP)
        experts = part(f"{layer.name}: the number of experts", layer.experts, ep, 1)
        part(f"{layer.name}: the hidden size", layer.hidden, 1, COLS_STEP)
        layer = replace(layer, name=layer.name + suffix, inner=inner, experts=experts)
    dense = []
    for gemm in shape.dense:
        cuts_cols = gemm.name.rpartition(".")[2] in CUT_COLS
        rows = part(f"{gemm.name}: N", gemm.rows, 1 if cuts_cols else tp, ROWS_STEP)
        cols = part(f"{gemm.name}: K", gemm.cols, tp if cuts_cols else 1, COLS_STEP)
        stem, _, leaf = gemm.name.rpartition(".")
        dense.append(replace(gemm, name=f"{stem}/tp{tp}.{leaf}" if tp > 1 else gemm.name, rows=rows, cols=cols))
    raise_all(problems, RecipeError, f"{shape.name} cannot be split by --tp {tp} --ep {ep}")
    return Shape(shape.name + suffix, layer, tuple(dense))


def gather(names: Iterable[str], model: Path | None, tp: int, ep: int, layers: bool = False) -> list[Shape]:
    """The shapes that a command line names; `layers`: only layers of experts will be looked at.

    Raises: RecipeError when it names none, or none with what will be looked at.
    """
    shapes = [named(name) for name in names] + ([of_model(model)] if model else [])
    if not shapes:
        raise RecipeError(f"nothing to measure: give --model CONFIG or --shape {{{'|'.join(NAMED)}}}")
    if layers and not any(shape.layer for shape in shapes):
        dense = ", ".join(shape.name for shape in shapes)
        raise RecipeError(f"{dense}: found dense projections only, expected a layer of experts; `gemm` takes these")
    return [split(shape, tp, ep) for shape in shapes]


def parse_tokens(text: str) -> tuple[int, ...]:
    """'1,8,64' -> (1, 8, 64).  Raises: RecipeError for anything that is no list of positive whole numbers."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise RecipeError(f"--tokens: found {text!r}, expected positive whole numbers such as 1,8,64")
    return found
