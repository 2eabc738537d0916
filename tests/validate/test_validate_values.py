"""Values: each kind of number that must never be written is found in the tensor that holds it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, file_of, write_json
from torch import Tensor

from w4afp8.validate import ValidationReport, validate
from w4afp8.validate.values import not_finite

CODES = "model.layers.2.mlp.experts.5.gate_proj.weight"
SCALE = f"{CODES}_scale_inv"
W1, W3 = (f"model.layers.1.mlp.experts.3.{w}.input_scale" for w in ("w1", "w3"))


def broken(folder: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> ValidationReport:
    def edit(tensors: dict[str, Tensor]) -> None:
        result = change(tensors[name])
        if result is not None:
            tensors[name] = result

    edit_tensors(folder, file_of(folder, name), edit)
    return validate(folder, sample=1)


def offset_binary(packed: Tensor) -> Tensor:
    return (packed.view(torch.uint8) ^ 0x88).view(torch.int8)


@pytest.mark.parametrize(
    ("name", "change", "check"),
    [
        ("model.norm.weight", lambda t: t[7:8].fill_(float("nan")), "finite"),
        ("lm_head.weight", lambda t: t[3, 5:6].fill_(float("-inf")), "finite"),
        ("model.layers.0.mlp.up_proj.weight", lambda t: t.view(torch.uint8)[9, 4:5].fill_(0xFF), "finite"),
        (SCALE, lambda t: t[3, 1:].fill_(float("nan")), "finite"),
        (SCALE, lambda t: t[3, 1:].fill_(0), "scales"),
        (SCALE, lambda t: t[3, 1:].neg_(), "scales"),
        (SCALE, lambda t: t[3, 1:].fill_(1e-39), "scales"),
        (SCALE, lambda t: t.fill_(1.0), "scales"),
        (CODES, lambda t: t.zero_(), "codes"),
        (CODES, lambda t: t.fill_(0x77), "codes"),
        (CODES, lambda t: t.bitwise_and_(0x11), "codes"),
        (CODES, offset_binary, "codes"),
        (W1, lambda t: t.fill_(1.0), "input scales"),
        (W1, lambda t: t.fill_(0.0), "input scales"),
        (W1, lambda t: t.fill_(float("inf")), "input scales"),
    ],
)
def test_a_bad_number_is_found_where_it_stands(
    copy: Path, name: str, change: Callable[[Tensor], Tensor | None], check: str
) -> None:
    problems = broken(copy, name, lambda t: change(t) if change is offset_binary else (change(t), None)[1])
    named = [problem.who for problem in problems.check(check).problems]
    assert named and all(name in who for who in named if "w3" not in who), named


def test_w3_must_equal_w1(copy: Path) -> None:
    problems = broken(copy, W3, lambda t: t * 1.01).check("input scales").problems
    assert [problem.who for problem in problems] == [W3]


def test_a_scale_that_is_not_the_recorded_one_is_found(copy: Path) -> None:
    record = json.loads((copy / "w4afp8/record.json").read_text())
    scales = {"gate_up": torch.tensor(0.03).bfloat16().item(), "down": 0.25}
    write_json(copy / "w4afp8/record.json", {**record, "layers": [{"layer": 1, "input_scale": scales}]})
    problems = validate(copy, sample=1).check("input scales").problems
    assert {problem.who for problem in problems} == {
        f"model.layers.1.mlp.experts.{e}.w2.input_scale" for e in range(16)
    }


def test_the_place_of_a_nan_is_given(copy: Path) -> None:
    report = broken(copy, "lm_head.weight", lambda t: (t[3, 5:6].fill_(float("nan")), None)[1])
    assert report.check("finite").problems[0].who == "lm_head.weight[3, 5]"


def test_a_flipped_byte_breaks_its_digest(copy: Path) -> None:
    from rtn_writer import read_all

    digests = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in read_all(copy).items()
        if tensor.ndim
    }
    record = json.loads((copy / "w4afp8/record.json").read_text())
    write_json(copy / "w4afp8/record.json", {**record, "digests": digests})
    assert validate(copy, sample=1).check("digests").passed
    path = copy / file_of(copy, CODES)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    assert len(validate(copy, sample=1).check("digests").problems) == 1


def test_histograms_count_every_code_and_scale(quantized: Path) -> None:
    histograms = validate(quantized, sample=1).histograms
    experts = 64 * 3 * 256 * 256
    assert sum(histograms.codes) == experts
    assert sum(histograms.scales) == experts // 128
    assert histograms.codes[8] == max(histograms.codes), "zero is the most frequent code of rounded weights"


def test_every_not_a_number_of_every_float_type():
    e4m3 = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    assert torch.equal(not_finite(e4m3), e4m3.float().isnan())
    e5m2 = torch.arange(256).to(torch.uint8).view(torch.float8_e5m2)
    assert torch.equal(not_finite(e5m2), ~e5m2.float().isfinite())
    e8m0 = torch.arange(256).to(torch.uint8).view(torch.float8_e8m0fnu)
    assert not_finite(e8m0).nonzero().flatten().tolist() == [255]
    assert not not_finite(torch.tensor([1, -1], dtype=torch.int8)).any()


@pytest.mark.parametrize("beside", [True, False])
def test_a_matrix_that_no_longer_unpacks_is_named_and_the_others_are_still_tested(
    quantized_toys: Callable[[str], tuple[Path, Path]], tmp_path: Path, beside: bool
) -> None:
    source, made = quantized_toys("compressed_tensors_w4a8")
    out, name = Path(shutil.copytree(made, tmp_path / "out")), "model.layers.1.mlp.experts.0.up_proj.weight_shape"
    edit_tensors(out, file_of(out, name), lambda held: held[name][0].add_(1))
    report = validate(out, source if beside else None)
    (found,) = report.check("finite").problems
    assert found.who == name and "the words hold" in found.found
    compared = [expert.expert for expert in report.layers[0].experts]
    assert compared == ([1, 2, 3] if beside else []) and report.check("grouped GEMM").examined == 6
