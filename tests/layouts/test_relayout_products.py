"""The bytes that an engine loads are multiplied as they stand in the files, on every rank, beside float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from relayouts import Make, files, into
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8.errors import DeviceError, RecipeError
from w4afp8.kernels import reference
from w4afp8.validate import products, restored, validate
from w4afp8.validate.fused import LAYER_ERROR
from w4afp8.validate.products import GEMM_ERROR


@pytest.mark.parametrize("tp, ep", [(1, 1), (2, 2)])
def test_every_ranks_own_bytes_are_multiplied(int4: Make, tmp_path: Path, tp: int, ep: int) -> None:
    """Of 384 channels two ranks hold 256 and 128, the latter padded to 256."""
    source, out = int4(moe_intermediate_size=384, num_hidden_layers=2), tmp_path / "out"
    into(source, "sm90", out, tp=tp, ep=ep)
    report = validate(out)
    layers, experts, stacks = 2, 4, 2  # one layer of the model, one of its MTP
    assert report.check("grouped GEMM").examined == layers * experts * stacks * tp
    assert report.check("fused layer").examined == layers * tp * ep
    assert report.passed and report.proven_by.startswith("plain torch")
    assert [layer.inputs for layer in report.layers] == ["recorded", "recorded"]
    assert all(0 <= error < GEMM_ERROR for layer in report.layers for error in layer.gemm.values())
    assert all(layer.fused is not None and layer.fused < LAYER_ERROR / 100 for layer in report.layers)


@pytest.mark.gpu
@pytest.mark.parametrize("tp, ep", [(1, 1), (2, 2)])
def test_the_kernels_prove_the_stacks_that_plain_torch_proves(int4: Make, tmp_path: Path, tp: int, ep: int) -> None:
    source, out = int4(hidden_size=256, moe_intermediate_size=512, num_hidden_layers=2), tmp_path / "out"
    into(source, "sm90", out, tp=tp, ep=ep)
    on_gpu, on_cpu = (validate(out, device=device) for device in ("cuda", "cpu"))
    assert not on_gpu.problems and on_gpu.proven_by.startswith("sm_90a kernels on NVIDIA H")
    assert [(c.name, c.passed, c.examined) for c in on_gpu.checks] == [
        (c.name, c.passed, c.examined) for c in on_cpu.checks
    ]
    for layer in on_gpu.layers:
        assert 0 < layer.gemm["down"] < GEMM_ERROR and 0 < (layer.fused or 0) < LAYER_ERROR


def test_a_sample_multiplies_a_few_experts_and_compares_every_byte(int4: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2), "sm90", out, ep=2)
    whole, some = validate(out), validate(out, sample=1)
    assert some.passed and not some.proven and some.sample == 1
    assert some.check("grouped GEMM").examined == 2 * 2 < whole.check("grouped GEMM").examined
    assert some.check("canonical").examined == whole.check("canonical").examined
    with pytest.raises(DeviceError, match=r"validate --device cuda: found"):
        validate(out, device="cuda")


def test_a_kernel_that_reads_other_bytes_is_found(int4: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every digest fits: only a product can tell."""
    out = tmp_path / "out"
    into(int4(moe_intermediate_size=256, num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out, tp=2)
    honest = reference.sm90.load_scales
    monkeypatch.setattr(reference.sm90, "load_scales", lambda scale: honest(scale).roll(1, 1))
    report = validate(out)
    assert {check.name for check in report.checks if check.failed} == {"grouped GEMM", "fused layer"}
    named = {problem.who for problem in report.check("grouped GEMM").problems}
    assert "rank-1-of-2/model.layers.1.mlp.experts.w2 of expert 3" in named and len(named) == 2 * 4 * 2


def test_static_scales_of_the_rank_are_what_the_layer_is_multiplied_with(
    int4: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = int4(num_hidden_layers=2, num_nextn_predict_layers=0), tmp_path / "out"
    path = source / "act_scales.safetensors"
    save_file({name: torch.tensor([0.01 + 0.01 * at]) for at, name in enumerate(sorted(load_file(path)))}, path)
    into(source, "sm90", out, ep=2)
    seen: list[tuple[float, float]] = []
    honest = products.compare_layer

    def spy(*arguments: object) -> float | None:
        static = arguments[-1]
        assert isinstance(static, tuple)
        seen.append((float(static[0]), float(static[1])))
        return honest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("w4afp8.validate.packed.compare_layer", spy)
    assert validate(out).passed
    expected = []
    for rank in range(2):
        held = {n: t for p in (out / f"rank-{rank}-of-2").glob("*.safetensors") for n, t in load_file(p).items()}
        expected.append(tuple(float(held[f"model.layers.1.mlp.experts.{s}_input_scale"]) for s in ("w13", "w2")))
    assert seen == expected and len(set(seen)) == 2, "each rank its own"


@pytest.mark.parametrize("name", ["marlin", "sglang-cutlass"])
def test_where_nothing_multiplies_it_is_said(int4: Make, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2), name, out)
    report = validate(out)
    assert report.passed and not report.layers
    assert report.check("grouped GEMM").idle == f"no op here multiplies int4 in {name}"
    for asked in ({"sample": 4}, {"device": "cuda"}):
        with pytest.raises(RecipeError, match=f"nothing here multiplies int4 in {name}, .* leave (it|them) out"):
            validate(out, **asked)  # type: ignore[arg-type]


def spoil_inputs(folder: Path, part: str, wrong: Tensor) -> None:
    path = folder / "w4afp8" / "inputs.safetensors"
    save_file({**load_file(path), f"layers.1.{part}": wrong}, path)


@pytest.mark.parametrize(
    "part, wrong",
    [("x", torch.zeros(3, 5)), ("x", torch.zeros(0, 128)), ("experts", torch.full((32, 2), 1 << 30)),
     ("experts", torch.full((32, 2), -1)), ("weights", torch.zeros(1))],
)  # fmt: skip
def test_recorded_inputs_of_no_such_layer_are_refused_by_name(
    int4: Make, tmp_path: Path, part: str, wrong: Tensor
) -> None:
    out = tmp_path / "out"
    into(int4(num_hidden_layers=2, num_nextn_predict_layers=0), "sm90", out)
    tokens = len(load_file(out / "w4afp8" / "inputs.safetensors")["layers.1.x"])
    spoil_inputs(out, part, wrong[:1].expand(tokens, 2).contiguous() if part == "experts" else wrong)
    report = validate(out)
    assert any("inputs.safetensors" in problem.who for problem in report.check("canonical").problems)
    assert any(f"layers.1.{part}" in str(p) or "layers.1.experts" in str(p) for p in report.check("record").problems)
    assert report.check("grouped GEMM").skipped


def test_files_that_hold_scales_before_codes_are_streamed_too(
    int4: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As safetensors itself orders them: each expert is asked for twice, and laid out again once."""
    source, out = int4(num_hidden_layers=2, num_nextn_predict_layers=0), tmp_path / "out"
    held = {name: t for p in sorted(source.glob("model-*.safetensors")) for name, t in load_file(p).items()}
    for path in source.glob("model-*.safetensors"):
        path.unlink()
    save_file(held, source / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {
        name: shard if shard.startswith("act") else "model-00001-of-00001.safetensors"
        for name, shard in content["weight_map"].items()
    }
    index.write_text(json.dumps(content))
    shutil.rmtree(source / "w4afp8")
    into(source, "sm90", out, tp=1)
    monkeypatch.setattr(restored, "KEPT_BYTES", 0)
    before = files(out)
    report = validate(out)
    assert report.passed, [str(problem) for problem in report.problems]
    assert report.check("stacks").examined == 4 * 2 and files(out) == before
