"""Every registered format, by the common tests; detection; refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8 import formats
from w4afp8.checkpoint.spec import NAMES, TensorSpec
from w4afp8.errors import FormatError, QuantizationError, RecipeError
from w4afp8.formats._spec import AwareWeight, BlockWeight, FineWeight, GroupWeight, MicroWeight, PlainWeight, Weight
from w4afp8.numerics import fp8

SHAPES = [(128, 128), (3, 256), (200, 384), (1, 128), (2, 160)]


def random_group(n: int, k: int) -> GroupWeight:
    scale = (torch.rand(n, k // 128) + 0.01).to(torch.bfloat16).float()
    return GroupWeight(torch.randint(-8, 8, (n, k), dtype=torch.int8), scale)


RANDOM: dict[type[Weight], Callable[[int, int], Weight]] = {
    GroupWeight: random_group,
    AwareWeight: lambda n, k: AwareWeight(
        random_group(n, k), (torch.rand(k) + 0.5).to(torch.bfloat16), torch.rand(()), torch.rand(())
    ),
    FineWeight: lambda n, k: FineWeight(
        torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        (torch.rand(n, k // 32) + 0.01).to(torch.bfloat16).float(),
    ),
    MicroWeight: lambda n, k: MicroWeight(
        torch.randint(0, 16, (n, k), dtype=torch.uint8), torch.randint(1, 250, (n, k // 32), dtype=torch.uint8)
    ),
    BlockWeight: lambda n, k: BlockWeight(
        fp8.encode(torch.randn(n, k)), torch.exp2(torch.randint(-20, 20, fp8.block_grid(n, k)).float())
    ),
    PlainWeight: lambda n, k: PlainWeight(torch.randn(n, k).to(torch.bfloat16)),
}


def random_weight(name: str, n: int, k: int) -> Weight:
    """A middle form that the format packs; skips the sizes that it does not hold."""
    fmt = formats.get(name)
    try:
        fmt.specs("x", n, k)
    except QuantizationError as refusal:
        assert "multiple" in str(refusal) or "odd" in str(refusal)
        pytest.skip(str(refusal))
    return RANDOM[fmt.form](n, k)


def raw(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def specs_of(stem: str, parts: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {stem + s: TensorSpec(stem + s, NAMES[t.dtype], tuple(t.shape)) for s, t in parts.items()}


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_what_a_format_packs_it_unpacks(name: str, n: int, k: int) -> None:
    fmt, weight = formats.get(name), random_weight(name, n, k)
    parts = fmt.pack(weight)
    assert [(s.name, s.dtype, s.shape) for s in fmt.specs("x", n, k)] == [
        (s.name, s.dtype, s.shape) for s in specs_of("x", parts).values()
    ]
    again = fmt.unpack(parts)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert again.dequantize().dtype == torch.float32
    for suffix, tensor in fmt.pack(again).items():
        assert raw(tensor) == raw(parts[suffix]), suffix


@given(
    name=st.sampled_from(formats.names()), n=st.integers(1, 70), k=st.integers(1, 12).map(lambda g: 32 * g),
    seed=st.integers(0, 2**31), view=st.booleans(),
)  # fmt: skip
def test_any_size_survives_both_ways_or_is_refused_by_the_headers(
    name: str, n: int, k: int, seed: int, view: bool
) -> None:
    """Odd N, K not a multiple of the group, one row: the refusal stands in the shapes, before any byte."""
    torch.manual_seed(seed)
    fmt = formats.get(name)
    try:
        fmt.specs("x", n, k)
    except QuantizationError:
        assert fmt.refusal("x", {}, n, k) is not None
        return
    parts = fmt.pack(RANDOM[fmt.form](n, k))
    read = {s: t.mT.contiguous().mT if view and t.ndim == 2 else t for s, t in parts.items()}
    for suffix, tensor in fmt.pack(fmt.unpack(read)).items():
        assert raw(tensor) == raw(parts[suffix]), suffix


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_format_is_detected_from_dtypes_and_shapes(name: str, n: int, k: int) -> None:
    specs = specs_of("x", formats.get(name).pack(random_weight(name, n, k)))
    assert formats.detect("x", specs, n, k).name == name


@pytest.mark.parametrize("name", formats.names())
def test_a_format_refuses_every_other_shape_and_dtype(name: str) -> None:
    fmt = formats.get(name)
    for spec in fmt.specs("x", 256, 256):
        larger = [(spec.dtype, (spec.shape[0] + 1, *spec.shape[1:]))] if spec.shape else []
        for dtype, shape in ((spec.dtype, (*spec.shape, 1)), ("F64", spec.shape), *larger):
            specs = {s.name: s for s in fmt.specs("x", 256, 256)} | {spec.name: TensorSpec(spec.name, dtype, shape)}
            why = fmt.refusal("x", specs, 256, 256)
            assert why is not None and spec.name.removeprefix("x") in why, (spec, dtype, shape)
        missing = {s.name: s for s in fmt.specs("x", 256, 256) if s.name != spec.name}
        assert fmt.refusal("x", missing, 256, 256) == f"{spec.name.removeprefix('x')} is missing"


def test_no_two_formats_read_the_same_tensors() -> None:
    for name in formats.names():
        specs = {s.name: s for s in formats.get(name).specs("x", 256, 512)}
        readers = [other for other in formats.names() if formats.get(other).refusal("x", specs, 256, 512) is None]
        assert readers == [name]


def test_what_no_format_reads_gets_every_formats_reason() -> None:
    odd = TensorSpec("x.weight", "I8", (4, 64))
    with pytest.raises(FormatError, match=r"x\.weight \(I8 \[4, 64\]\): expected a matrix \[4, 128\]") as caught:
        formats.detect("x", {"x.weight": odd}, 4, 128)
    for name in formats.names():
        assert f"\n  {name}: " in str(caught.value)
    assert "sglang_w4afp8: .weight_scale_inv is missing" in str(caught.value)


def test_an_int4_matrix_of_ragged_groups_is_refused_in_words() -> None:
    specs = {"x.weight": TensorSpec("x.weight", "I8", (4, 50)), "x.weight_scale_inv": TensorSpec("x", "F32", (4, 1))}
    with pytest.raises(FormatError, match="K = 100 is not a multiple of the group size 128"):
        formats.detect("x", specs, 4, 100)


def test_unknown_names_and_formats_that_are_only_read_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown format 'sglang_w4afp'.*did you mean 'sglang_w4afp8'"):
        formats.get("sglang_w4afp")
    with pytest.raises(
        RecipeError,
        match=r"'deepseek_fp8' can be read but is no output; outputs: compressed_tensors_mxfp4, .*sglang_w4afp8",
    ):
        formats.target("deepseek_fp8")
    assert set(formats.targets()) <= set(formats.names())


@pytest.mark.parametrize("name", formats.targets())
def test_an_output_format_stands_on_a_weight_format_of_its_own(name: str) -> None:
    target = formats.target(name)
    assert target.name == name
    assert target.expert_weight is formats.get(target.expert_weight.name)
    assert target.expert_weight.bits == 4
    assert sorted(target.input_scale.names) in ([], ["down_proj", "gate_proj", "up_proj"])
    assert bool(target.input_scale.names) == (target.scheme == "W4AFP8")
    assert target.read_by


def test_every_format_is_documented_with_its_tensors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text().split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", page, re.M))
    assert sorted(rows) == list(formats.names())
    for name, row in rows.items():
        assert f"`{formats.get(name).form.__name__}`" in row
        assert re.findall(r"`([._]\w+)`", row) == [part.suffix for part in formats.get(name).parts]
