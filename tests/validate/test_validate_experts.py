"""Routed experts: bytes that decode to something else than the source's experts are found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, file_of
from torch import Tensor

from w4afp8.formats._spec import GroupWeight
from w4afp8.numerics import groups
from w4afp8.validate import ValidationReport, validate, weights
from w4afp8.validate.weights import compare, multiply, relative_squared, row_factor

STEM = "model.layers.3.mlp.experts.0"  # sample=1 looks at expert 0 of each layer
SITES = ("gate_proj", "up_proj", "down_proj")


def broken(folder: Path, source: Path, name: str, change: Callable[[Tensor], Tensor]) -> ValidationReport:
    edit_tensors(folder, file_of(folder, name), lambda t: t.update({name: change(t[name]).contiguous()}))
    return validate(folder, source, sample=1)


def swap_nibbles(packed: Tensor) -> Tensor:
    raw = packed.view(torch.uint8)
    return ((raw << 4) | (raw >> 4)).view(torch.int8)


def nibbles_along_rows(packed: Tensor) -> Tensor:
    """The same codes with rows 2i and 2i+1 sharing bytes, as ModelOpt packs, in a [N, K/2] shape."""
    low, high = (packed << 4) >> 4, packed >> 4
    codes = torch.stack((low, high), -1).flatten(1)
    return ((codes[1::2] << 4) | (codes[0::2] & 15)).reshape(packed.shape)


def named(report: ValidationReport, check: str) -> list[str]:
    return [problem.who for problem in report.check(check).problems]


def test_plain_rounding_passes_and_is_measured(quantized: Path, miniature: Path) -> None:
    report = validate(quantized, miniature)
    assert report.passed, [str(problem) for problem in report.problems]
    assert [layer.layer for layer in report.layers] == [1, 2, 3, 4] and report.layers[-1].mtp
    for layer in report.layers:
        assert len(layer.experts) == 16 and layer.inputs == "recorded"
        assert 0.005 < layer.output_error < 0.1
        assert sum(expert.tokens for expert in layer.experts) == 24 * 4
        assert all(0.005 < error < 0.03 for expert in layer.experts for error in expert.weight_error.values())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("damage", [swap_nibbles, nibbles_along_rows, lambda t: t.roll(1, 0), lambda t: t.flip(1)])
def test_misplaced_codes_are_found(copy: Path, miniature: Path, site: str, damage: Callable[[Tensor], Tensor]) -> None:
    name = f"{STEM}.{site}.weight"
    assert name in named(broken(copy, miniature, name, damage), "expert weights")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("damage", [lambda t: t.flip(0), lambda t: t.flip(1), lambda t: t.roll(1, 0)])
def test_permuted_scales_are_found(copy: Path, miniature: Path, site: str, damage: Callable[[Tensor], Tensor]) -> None:
    name = f"{STEM}.{site}.weight_scale_inv"
    assert name in named(broken(copy, miniature, name, damage), "scale fit")


def test_scales_off_by_a_tenth_are_found(copy: Path, miniature: Path) -> None:
    name = f"{STEM}.gate_proj.weight_scale_inv"
    assert named(broken(copy, miniature, name, lambda t: t * 1.1), "scale fit") == [name]


def test_another_experts_weights_are_found(copy: Path, miniature: Path) -> None:
    names = [f"model.layers.3.mlp.experts.{e}.down_proj.weight" for e in (0, 1)]

    def exchange(tensors: dict) -> None:
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]

    edit_tensors(copy, file_of(copy, names[0]), exchange)
    report = validate(copy, miniature, sample=1)
    assert names[0] in named(report, "expert weights") and STEM in named(report, "expert outputs")


@pytest.mark.parametrize("site", SITES)
def test_one_wrong_code_among_plainly_rounded_ones_is_found(copy: Path, miniature: Path, site: str) -> None:
    name = f"{STEM}.{site}.weight"

    def flip(packed: Tensor) -> Tensor:
        packed[100, 33] ^= 0x40
        return packed

    (who,) = named(broken(copy, miniature, name, flip), "nearest codes")
    assert who == f"{name}[100, 67]", "byte 33's high nibble is column 67"


def test_folds_of_rows_and_columns_are_undone():
    generator = torch.Generator().manual_seed(5)
    gate, up, down = (torch.randn(256, 256, generator=generator) for _ in range(3))
    fold = 2.0 ** torch.randint(-1, 2, (256,), generator=generator)
    t = torch.rand(256, generator=generator) * 4 + 0.2

    def rounded(real: Tensor) -> GroupWeight:
        scale = groups.round_to_bf16(groups.amax(real) / 7.5)
        return GroupWeight(groups.round_to_codes(real, scale), scale)

    after = {"up_proj": rounded(up / fold / t[:, None]), "down_proj": rounded(down * t)}
    factor = row_factor(after["up_proj"], up, 1 / fold)
    assert (factor * t - 1).abs().max() < 0.1 and (factor * t - 1).abs().median() < 0.02
    found = {
        "up_proj": compare(after["up_proj"], up, factor, 1 / fold),
        "down_proj": compare(after["down_proj"], down, None, 1 / factor),
    }
    for site, numbers in found.items():
        assert numbers.error < 0.03 and numbers.scale_misfit < 0.05, site
    assert compare(after["down_proj"], down, None, None).error > 0.25, "without undoing the fold it is another matrix"
    assert torch.equal(row_factor(rounded(gate), gate, torch.ones(256)), torch.ones(256)), "no fold, no factor"


def test_products_are_those_of_whole_matrices(monkeypatch):
    monkeypatch.setitem(weights.PIECE_NUMBERS, "cpu", 3 * 256)
    real, x = torch.randn(50, 256), torch.randn(4, 256)
    scale = groups.round_to_bf16(groups.amax(real) / 7.5)
    weight = GroupWeight(groups.round_to_codes(real, scale), scale)
    assert torch.allclose(multiply(x, weight), x.double() @ weight.dequantize().double().T, rtol=1e-12)
    assert torch.allclose(multiply(x, real), x.double() @ real.double().T, rtol=1e-12)
    whole = relative_squared(weight.dequantize(), real)
    assert compare(weight, real, None, None).error == pytest.approx(whole, rel=1e-5)


def test_the_farthest_code_is_found_in_any_piece(monkeypatch):
    monkeypatch.setitem(weights.PIECE_NUMBERS, "cpu", 7 * 256)
    real = torch.randn(50, 256)
    scale = groups.round_to_bf16(groups.amax(real) / 7.5)
    codes = groups.round_to_codes(real, scale)
    codes[44, 201] = -codes[44, 201] + 3
    numbers = compare(GroupWeight(codes, scale), real, None, None)
    assert numbers.farthest == (44, 201) and numbers.farthest_steps > 1.5
