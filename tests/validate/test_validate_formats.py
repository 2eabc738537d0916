"""What is proven in one format is proven in the other: quantized straight into it, or converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, write_json

from w4afp8 import conversion
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import take_seal

Toys = Callable[[str], tuple[Path, Path]]
CT, SGLANG = "compressed_tensors_w4a8", "sglang_w4afp8"
KEPT = "w4afp8/act_scales.safetensors"
EXPERT = "model.layers.1.mlp.experts.2.down_proj"


@pytest.fixture
def ct(quantized_toys: Toys, tmp_path: Path) -> tuple[Path, Path]:
    """The source, and a copy of what was quantized straight to compressed-tensors."""
    source, out = quantized_toys(CT)
    return source, Path(shutil.copytree(out, tmp_path / "ct"))


def problems_of(folder: Path, source: Path | None, check: str) -> list[str]:
    report = validate(folder, source, sample=1)
    assert [c.name for c in report.checks if c.failed] == [check]
    return [str(problem) for problem in report.check(check).problems]


def test_quantized_straight_it_is_proven_and_is_what_a_conversion_makes(
    ct: tuple[Path, Path], quantized_toys: Toys, tmp_path: Path
) -> None:
    source, out = ct
    report = validate(out, source)
    assert report.proven, [str(p) for p in report.problems] + [c.name for c in report.checks if c.skipped]
    assert report.format == CT
    assert max(layer.gemm["gate_up"] for layer in report.layers) < 2e-3
    assert "scale activations when they see them" in (report.check("static activations").idle or "")
    assert report.check("input scales").examined == 4 * 3
    gate.write_verdict(out, report, take_seal(out))
    assert gate.state(out).state is gate.State.PROVEN
    there = tmp_path / "there"
    conversion.run(conversion.prepare(quantized_toys(SGLANG)[1], CT, there, 0.0005))
    assert validate(there, source).proven
    for path in sorted(there.glob("*.safetensors")):
        assert path.read_bytes() == (out / path.name).read_bytes()
    for name in ("config.json", "model.safetensors.index.json", KEPT, "tokenizer.json"):
        assert (there / name).read_bytes() == (out / name).read_bytes(), name


def test_a_source_of_16_bits_keeps_its_linears(
    toy: Callable[..., Path], small_recipe: Callable[..., object], tmp_path: Path
) -> None:
    from w4afp8 import pipeline

    source, out = toy(dtype="bf16", num_hidden_layers=2, num_nextn_predict_layers=0), tmp_path / "out"
    recipe = small_recipe(output={"format": CT, "shard_gb": 0.001})
    pipeline.run(pipeline.prepare(source, recipe, out))  # type: ignore[arg-type]
    assert json.loads((out / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    assert validate(out, source).proven


def test_a_code_a_scale_and_a_linear_that_changed_are_named(ct: tuple[Path, Path]) -> None:
    source, out = ct
    (out / "w4afp8/record.json").unlink()  # so that no digest tells
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]

    def changed(name: str, factor: float) -> Path:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)

        path = out / index[name]
        whole = path.read_bytes()
        edit_tensors(out, index[name], change)
        path.with_suffix(".whole").write_bytes(whole)
        return path

    def mend(path: Path) -> None:
        path.with_suffix(".whole").rename(path)

    path = changed(f"{EXPERT}.weight_scale", 4.0)
    found = validate(out, source)
    failed = {check.name for check in found.checks if check.failed}
    assert {"expert weights", "expert outputs", "scale fit"} <= failed
    assert any(f"{EXPERT}.weight_scale" in str(p) for p in found.check("scale fit").problems)
    mend(path)
    path = changed("model.layers.0.self_attn.o_proj.weight_scale", 2.0)
    assert "model.layers.0.self_attn.o_proj.weight_scale" in problems_of(out, source, "carried")[0]
    mend(path)
    assert validate(out, source, sample=1).passed


def test_kept_scales_are_held_to_the_record_and_may_be_gone(ct: tuple[Path, Path]) -> None:
    _, out = ct
    name = "model.layers.1.mlp.experts.0.w2.input_scale"
    edit_tensors(out, KEPT, lambda tensors: tensors[name].mul_(1.5))
    assert "record.json says" in problems_of(out, None, "input scales")[0]
    edit_tensors(out, KEPT, lambda tensors: tensors.pop(name))
    assert problems_of(out, None, "input scales") == [
        f"{name}: found nothing, expected every expert's scales in {KEPT}; "
        "copy it again, or quantize into a new directory"
    ]
    (out / KEPT).unlink()
    report = validate(out, sample=1)
    assert report.passed and report.check("input scales").idle


def test_a_linear_that_the_engine_reads_otherwise_is_refused(ct: tuple[Path, Path]) -> None:
    """FP8 blocks under DeepSeek's names: the numbers are right, and vLLM's compressed-tensors finds no scale."""
    _, out = ct
    index = json.loads((out / "model.safetensors.index.json").read_text())
    name = "model.layers.0.self_attn.o_proj.weight_scale"
    file = index["weight_map"].pop(name)
    index["weight_map"][f"{name}_inv"] = file
    edit_tensors(out, file, lambda tensors: tensors.update({f"{name}_inv": tensors.pop(name)}))
    write_json(out / "model.safetensors.index.json", index)
    found = validate(out, sample=1).check("tensors").problems
    assert len(found) == 1 and "found deepseek_fp8, expected compressed_tensors_fp8 or bf16" in str(found[0])


@pytest.mark.parametrize("shape", [(1,), ()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_activation_scales_are_read_as_published_files_have_them(
    quantized_toys: Toys, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """One BF16 or F32 number, with or without an axis; convert keeps them as they are and brings them back."""
    source, made = quantized_toys(SGLANG)
    out = Path(shutil.copytree(made, tmp_path / "out"))
    shutil.rmtree(out / "w4afp8")
    scales = out / "act_scales.safetensors"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype).reshape(shape)

    edit_tensors(out, scales.name, change)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    index["metadata"]["total_size"] += 4 * 3 * (dtype.itemsize - 4)
    write_json(out / "model.safetensors.index.json", index)
    report = validate(out, source)
    assert report.passed, [str(p) for p in report.problems]
    there, back = tmp_path / "there", tmp_path / "back"
    conversion.run(conversion.prepare(out, CT, there, 0.0005))
    conversion.run(conversion.prepare(there, SGLANG, back, 0.0005))
    from safetensors.torch import load_file

    before, after = load_file(scales), load_file(back / scales.name)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(after[name], tensor)


@pytest.mark.parametrize("name", [SGLANG, CT])
def test_what_is_4_bit_already_is_not_quantized_again(
    quantized_toys: Toys, small_recipe: Callable[..., object], tmp_path: Path, name: str
) -> None:
    from w4afp8 import pipeline
    from w4afp8.errors import RecipeError

    out = tmp_path / "again"
    with pytest.raises(RecipeError, match=f"the experts stand in {name}, 4 bits already.*w4afp8 convert"):
        pipeline.prepare(quantized_toys(name)[1], small_recipe(), out)  # type: ignore[arg-type]
    assert not out.exists()


def test_what_a_short_survey_let_through_validate_finds(
    toy: Callable[..., Path], small_recipe: Callable[..., object], tmp_path: Path
) -> None:
    """`survey: none` reads no copied tensor; docs/recipes.md says who does."""
    from w4afp8 import pipeline
    from w4afp8.errors import QuantizationError

    source, out = toy(num_hidden_layers=2, num_nextn_predict_layers=0), tmp_path / "out"
    file = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    edit_tensors(source, file, lambda tensors: tensors["lm_head.weight"][0].fill_(float("nan")))
    with pytest.raises(QuantizationError, match=r"lm_head\.weight"):
        pipeline.run(pipeline.prepare(source, small_recipe(), tmp_path / "refused"))  # type: ignore[arg-type]
    pipeline.run(pipeline.prepare(source, small_recipe(compute={"survey": "none"}), out))  # type: ignore[arg-type]
    found = [problem.who for problem in validate(out, source, sample=1).check("finite").problems]
    assert found == ["lm_head.weight[0, 0]"]
