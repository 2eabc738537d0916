"""Converted directories of every writable format: proven beside their source, or led back to its proof."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rtn_writer import write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8 import conversion, formats, hub
from w4afp8.checkpoint.lineage import checksum, read_lineage, write_lineage
from w4afp8.synthetic import write_checkpoint
from w4afp8.validate import ValidationReport, gate, validate
from w4afp8.validate.alike import TENSORS
from w4afp8.validate.converted import needs_source
from w4afp8.validate.gate import State
from w4afp8.validate.origin import origin_of
from w4afp8.validate.route import Kind, kind_of
from w4afp8.validate.seal import take_seal

Toys = Callable[[str], tuple[Path, Path]]
Change = Callable[[dict[str, Tensor]], Any]
SGLANG, CT, MODELOPT = "sglang_w4afp8", "compressed_tensors_w4a8", "modelopt_w4a8_awq"
V4 = {
    "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64, "q_lora_rank": 64, "num_experts_per_tok": 2,
    "n_routed_experts": 2, "n_shared_experts": 1, "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 2,
    "index_head_dim": 32, "index_topk": 8, "hc_mult": 2, "num_hash_layers": 1, "compress_ratios": [4, 128],
    "num_nextn_predict_layers": 1, "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus",
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2,
}  # fmt: skip
# (family's config, the source's format, the target's); {}: the toy DeepSeek-V3
FROM_PUBLISHERS = [
    (V4, "deepseek_mxfp4", "compressed_tensors_mxfp4"),
    (V4, "deepseek_mxfp4", "deepseek_ue8m0"),
    (V4, "deepseek_mxfp4", "bf16"),
    (V4, "deepseek_ue8m0", "bf16"),
    (V4, "deepseek_ue8m0", "deepseek_fp8"),
    ({}, "compressed_tensors_mxfp4", "deepseek_mxfp4"),
    (GPT_OSS, "gptoss_mxfp4", "compressed_tensors_mxfp4"),
    (GPT_OSS, "gptoss_mxfp4", "bf16"),
    ({}, "compressed_tensors_int4", CT),
    ({}, "deepseek_mxfp4", "deepseek_fp8"),
    ({}, MODELOPT, SGLANG),
    ({}, MODELOPT, CT),
]
FROM_OURS = [(SGLANG, CT), (SGLANG, MODELOPT), (CT, SGLANG), (CT, MODELOPT), ("deepseek_mxfp4", "deepseek_fp8")]


def convert(source: Path, target: str, out: Path, shard_gb: float = 0.0003) -> Path:
    conversion.run(conversion.prepare(source, target, out, shard_gb))
    return out


def prove(folder: Path, source: Path | None = None) -> ValidationReport:
    """Validate as the command does, verdict included."""
    seal, report = take_seal(folder), validate(folder, source)
    gate.write_verdict(folder, report, seal, origin_of(source) if source else None)
    return report


def blamed(report: ValidationReport) -> dict[str, list[str]]:
    return {check.name: [str(problem) for problem in check.problems] for check in report.checks if check.failed}


def untested(report: ValidationReport) -> list[str]:
    return [check.name for check in report.checks if check.skipped]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, toy_config: dict[str, Any]) -> Callable[[Any, str], Path]:
    """A source that no run of ours made."""
    home = tmp_path_factory.mktemp("published")
    small = toy_config | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    made: dict[str, Path] = {}

    def make(config: dict[str, Any], style: str) -> Path:
        name = f"{config.get('model_type', 'toy')}-{style}"
        if name not in made:
            made[name] = home / name
            write_checkpoint(made[name], config or small, dtype=style, shard_gb=0.0003)
        return made[name]

    return make


@pytest.fixture
def ours(quantized_toys: Toys, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of what was quantized, proven beside its source."""

    def make(name: str, proven: bool = True) -> Path:
        source, made = quantized_toys(name)
        out = Path(shutil.copytree(made, tmp_path / f"ours-{name}"))
        if proven:
            assert prove(out, source).proven
        return out

    return make


def test_every_writable_format_is_reached() -> None:
    written = {name for name in formats.checkpoints() if formats.checkpoint(name).written}
    reached = {target for *_, target in FROM_PUBLISHERS} | {target for _, target in FROM_OURS}
    assert reached | {"gptoss_mxfp4"} == written  # test_a_proof_travels_through_two_arrangements


@pytest.mark.parametrize(("config", "style", "target"), FROM_PUBLISHERS)
def test_beside_a_publishers_source(
    published: Callable[[Any, str], Path], tmp_path: Path, config: dict[str, Any], style: str, target: str
) -> None:
    source = published(config, style)
    out = convert(source, target, tmp_path / "out")
    report = prove(out, source)
    assert report.proven, (blamed(report), untested(report))
    assert report.format == target and report.check("numbers").examined > 0
    assert gate.state(out, deep=True).state is State.PROVEN
    assert f"every number is that of {source.name}" in str(gate.state(out))
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("style", "target"), FROM_OURS)
def test_what_was_proven_needs_no_source_where_the_bytes_lead_back(
    ours: Callable[..., Path], tmp_path: Path, style: str, target: str
) -> None:
    source = ours(style)
    out = convert(source, target, tmp_path / "out")
    assert validate(out, source).proven
    away = source.rename(tmp_path / "away")
    report = prove(out)
    if target == "deepseek_fp8":  # FP8 folded from e2m1: more than one e2m1 checkpoint becomes it
        assert needs_source(out) and not report.proven and report.passed
        assert "in deepseek_mxfp4 do not follow from it; run `w4afp8 validate DIR --against" in str(gate.state(out))
        assert prove(out, away).proven
        return
    assert not needs_source(out)
    assert report.proven, (blamed(report), untested(report))
    assert f"led back to {style}, every tensor has the bytes with which" in str(gate.state(out))


def test_a_proof_travels_through_two_arrangements(published: Callable[[Any, str], Path], tmp_path: Path) -> None:
    """Stacked to apart beside the source; apart to stacked with the proof alone, part of a stack by part."""
    apart = convert(published(GPT_OSS, "gptoss_mxfp4"), "compressed_tensors_mxfp4", tmp_path / "apart")
    assert prove(apart, published(GPT_OSS, "gptoss_mxfp4")).proven
    stacked = convert(apart, "gptoss_mxfp4", tmp_path / "stacked")
    shutil.rmtree(apart)
    report = prove(stacked)
    assert report.proven, (blamed(report), untested(report))
    assert report.claim.startswith("led back to compressed_tensors_mxfp4") and report.check("numbers").examined == 3 * 6


def test_every_middle_form_can_be_compared() -> None:
    assert {formats.get(name).form for name in formats.names()} == set(TENSORS)


def test_a_proof_of_another_config_leads_nowhere(ours: Callable[..., Path], tmp_path: Path) -> None:
    """What the numbers mean stands in config.json too: the proof must be about the one that was converted."""
    source = ours(SGLANG)
    out = convert(source, MODELOPT, tmp_path / "out")
    for name in ("w4afp8/conversion.json", "config.json"):
        content = json.loads((out / name).read_text())
        said = content["source"]["config"] if "source" in content else content
        said["routed_scaling_factor"] = 3.0
        if "checksum" in content:
            del content["checksum"]
            content = {"checksum": checksum(content), **content}
        write_json(out / name, content)
    forge(out)
    report = validate(out)
    assert report.passed and "numbers" in untested(report) and needs_source(out)
    assert "the config.json that it is about is not the one" in (report.check("source").skipped or "")
    assert "routed_scaling_factor" in blamed(validate(out, source))["source"][0]


# Damage: once as it happens, and once by a converter that is wrong itself, so that the recorded digests agree.


def edit(folder: Path, change: Change) -> None:
    """Change tensors where they stand; one that is gone leaves the index too."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in sorted(folder.glob("model-*.safetensors")):
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})
        for name in [n for n, file in index["weight_map"].items() if file == path.name and n not in held]:
            del index["weight_map"][name]
    size = sum(t.nbytes for path in folder.glob("*.safetensors") for t in load_file(path).values())
    write_json(folder / "model.safetensors.index.json", index | {"metadata": {"total_size": size}})


def forge(folder: Path) -> None:
    """What a converter would record that wrote these bytes."""
    lineage, seal = read_lineage(folder), take_seal(folder)
    files = {name: seal.files[name].sha256 for name in lineage.files}
    write_lineage(folder, replace(lineage, digests={n: seal.tensors[n] for n in lineage.digests}, files=files))


def nibble(held: dict[str, Tensor], name: str) -> None:
    held[name].view(torch.uint8).view(-1)[3] ^= 0x10


def last_bit(held: dict[str, Tensor], name: str) -> None:
    held[name].view(torch.uint8).view(-1)[-1] ^= 1


def swap(held: dict[str, Tensor], name: str) -> None:
    """With the next expert's: another tensor, or another part of the same."""
    other = name.replace("experts.0.", "experts.1.")
    if other != name:
        held[name], held[other] = held[other], held[name]
    else:
        held[name] = held[name][[1, 0, *range(2, len(held[name]))]].contiguous()


# (config, source's format, target's, where the codes are, where the scales are, what the message must name)
V3 = "model.layers.1.mlp.experts.0.gate_proj"
V4_STEM, STACK = "layers.1.ffn.experts.0.w1", "model.layers.0.mlp.experts.gate_up_proj"
BROKEN = {
    "modelopt": ({}, MODELOPT, SGLANG, f"{V3}.weight", f"{V3}.weight_scale_inv", V3),
    "kimi": ({}, "compressed_tensors_int4", CT, f"{V3}.weight_packed", f"{V3}.weight_scale", V3),
    "v4 in bf16": (V4, "deepseek_mxfp4", "bf16", f"{V4_STEM}.weight", f"{V4_STEM}.weight", V4_STEM),
    "v4 in fp8": (V4, "deepseek_mxfp4", "deepseek_ue8m0", f"{V4_STEM}.weight", f"{V4_STEM}.scale", V4_STEM),
    "gpt-oss apart": (
        GPT_OSS, "gptoss_mxfp4", "compressed_tensors_mxfp4", "model.layers.0.mlp.experts.0.gate_proj.weight_packed",
        "model.layers.0.mlp.experts.0.gate_proj.weight_scale", "model.layers.0.mlp.experts.0.gate_proj",
    ),
}  # fmt: skip
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor], str], None], int]] = {
    "a nibble": (nibble, 3), "a scale": (last_bit, 4), "experts swapped": (swap, 3),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named_whatever_the_digests_say(
    published: Callable[[Any, str], Path], tmp_path: Path, case: str, damage: str
) -> None:
    config, style, target, *where, named = BROKEN[case]
    out = convert(published(config, style), target, tmp_path / "out", shard_gb=1)
    change, which = DAMAGE[damage]
    name = where[which - 3]

    def broken(held: dict[str, Tensor]) -> None:
        if name in held:
            change(held, name)

    edit(out, broken)
    found = blamed(prove(out, published(config, style)))
    assert any(name in text and "as the conversion wrote" in text for text in found["digests"])
    assert any(text.startswith(named) and "the file changed after the conversion" in text for text in found["numbers"])
    assert gate.state(out).state is State.FAILED
    forge(out)
    found = blamed(prove(out, published(config, style)))
    assert "digests" not in found
    assert any(text.startswith(named) and "the source changed since" in text for text in found["numbers"])
    assert gate.state(out).state is State.FAILED


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_without_the_source_too(ours: Callable[..., Path], tmp_path: Path, damage: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    shutil.rmtree(tmp_path / f"ours-{SGLANG}")
    change, which = DAMAGE[damage]
    name = V3 + (".weight", ".weight_scale")[which - 3]

    def broken(held: dict[str, Tensor]) -> None:
        if name in held:
            change(held, name)

    edit(out, broken)
    forge(out)
    (first, *_) = blamed(prove(out))["numbers"]
    assert first.startswith(V3) and "led back" in first and "was proven with" in first
    assert gate.state(out).state is State.FAILED


def test_stacked_experts_that_changed_places_are_named(published: Callable[[Any, str], Path], tmp_path: Path) -> None:
    source = published(GPT_OSS, "gptoss_mxfp4")
    apart = convert(source, "compressed_tensors_mxfp4", tmp_path / "apart")
    out = convert(apart, "gptoss_mxfp4", tmp_path / "stacked")
    edit(out, lambda held: swap(held, f"{STACK}_blocks") if f"{STACK}_blocks" in held else None)
    forge(out)
    found = blamed(validate(out, apart))["numbers"]
    assert {text.split(":")[0] for text in found} == {
        f"model.layers.0.mlp.experts.{expert}.{name}.weight" for expert in (0, 1) for name in ("gate_proj", "up_proj")
    }


@pytest.mark.parametrize("gone", ["model.layers.1.mlp.experts.1.down_proj.pre_quant_scale", "lm_head.weight"])
def test_a_tensor_that_is_gone_is_named(ours: Callable[..., Path], tmp_path: Path, gone: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    edit(out, lambda held: held.pop(gone, None))
    report = prove(out)
    stem, _, suffix = gone.rpartition(".")
    assert any(stem in text and suffix in text for text in blamed(report)["tensors"])
    assert "numbers" in untested(report) and gate.state(out).state is State.FAILED


def test_modelopts_own_scalars_are_held_to_what_they_must_be(ours: Callable[..., Path], tmp_path: Path) -> None:
    """No other format has them: an input factor that is not 1 changes the product, the two amax the FP8 one."""
    source = ours(SGLANG)
    for suffix, check in (
        ("pre_quant_scale", "numbers"),
        ("weight_scale_2", "numbers"),
        ("input_scale", "input scales"),
    ):
        out = convert(source, MODELOPT, tmp_path / suffix)

        def twice(held: dict[str, Tensor], name: str = f"{V3}.{suffix}") -> None:
            if name in held:
                held[name] *= 2

        edit(out, twice)
        forge(out)
        found = blamed(validate(out, source))
        assert list(found) in ([check], ["written form", check]), found
        assert all(text.startswith(V3) for text in found[check])


def test_kept_scales_are_the_sources(ours: Callable[..., Path], tmp_path: Path) -> None:
    source = ours(MODELOPT) if MODELOPT in formats.targets() else convert(ours(SGLANG), MODELOPT, tmp_path / "modelopt")
    assert prove(source).proven
    out = convert(source, CT, tmp_path / "ct")
    kept = out / "w4afp8/act_scales.safetensors"
    held = load_file(kept)
    next(iter(held.values())).mul_(2)
    save_file(held, kept, {"format": "pt"})
    forge(out)
    assert "input scales" in blamed(validate(out, source))
    assert "numbers" in blamed(validate(out))  # ModelOpt has them in every matrix
    kept.unlink()
    assert f"{kept.name}" in blamed(validate(out, source))["digests"][0]


# The source: gone, changed since, another one.


def test_without_source_and_proof_it_says_what_is_missing(
    published: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    out = convert(published(V4, "deepseek_mxfp4"), "compressed_tensors_mxfp4", tmp_path / "out")
    report = prove(out)
    assert report.passed and not report.proven
    assert {"numbers", "carried", "source", "source proof"} <= set(untested(report))
    assert not untested(report) or "digests" not in untested(report)
    said = str(gate.state(out))
    assert (
        "deepseek_v4-deepseek_mxfp4 is not here, and had no proof when it was converted; run `w4afp8 validate" in said
    )
    assert gate.state(out).state is State.UNVALIDATED


def test_a_source_that_changed_since_is_said_to_have(tmp_path: Path) -> None:
    source = tmp_path / "v4"
    write_checkpoint(source, V4, dtype="deepseek_mxfp4", shard_gb=0.0003)
    out = convert(source, "compressed_tensors_mxfp4", tmp_path / "out")
    assert validate(out, source).proven

    def change(held: dict[str, Tensor]) -> None:
        for name in (f"{V4_STEM}.weight", "norm.weight", "layers.0.attn.wq_a.weight"):
            if name in held:
                last_bit(held, name)

    edit(source, change)
    found = blamed(prove(out, source))
    assert list(found) == ["numbers", "carried"]
    for name, check in ((f"{V4_STEM}.weight", "numbers"), ("norm.weight", "carried")):
        assert any(text.startswith(name) and "the source changed since" in text for text in found[check])
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", config | {"swiglu_limit": 7.0})
    found = blamed(validate(out, source))
    assert "swiglu_limit of v4" in found["source"][0] and "as when it was converted" in found["source"][0]


def test_another_checkpoint_is_refused_as_the_source(
    published: Callable[[Any, str], Path], ours: Callable[..., Path], quantized_toys: Toys, tmp_path: Path
) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    original = quantized_toys(SGLANG)[0]
    (said,) = blamed(validate(out, original))["source"]
    assert "experts in deepseek_fp8, expected in sglang_w4afp8" in said and "that was converted" in said


def test_an_unproven_source_proves_nothing(ours: Callable[..., Path], tmp_path: Path) -> None:
    source = ours(SGLANG, proven=False)
    out = convert(source, MODELOPT, tmp_path / "out")
    assert not (out / "w4afp8/source-validation.json").exists()
    report = prove(out, source)
    assert report.passed and untested(report) == ["source proof"]
    assert "validate it beside its own source first" in str(gate.state(out))


def test_the_source_that_is_given_decides_which_proof_it_is(
    ours: Callable[..., Path], quantized_toys: Toys, tmp_path: Path
) -> None:
    quantized, original = ours(SGLANG), quantized_toys(SGLANG)[0]
    out = convert(quantized, CT, tmp_path / "out")
    assert kind_of(out, original) is Kind.QUANTIZED and kind_of(out, quantized) is Kind.CONVERTED
    assert kind_of(out, None) is Kind.CONVERTED and kind_of(out, None, look=True) is Kind.QUANTIZED
    assert all(validate(out, source).proven for source in (original, quantized, None))
    (out / "w4afp8/source-validation.json").unlink()
    assert kind_of(out, None) is Kind.QUANTIZED


def test_a_source_at_hand_is_found_where_it_lies(
    published: Callable[[Any, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the directory, in the working directory, in the Hub's cache; nowhere else."""
    source = published(V4, "deepseek_mxfp4")
    out = convert(source, "compressed_tensors_mxfp4", tmp_path / "out")
    assert hub.source_at_hand(out) is None
    beside = Path(shutil.copytree(source, tmp_path / source.name))
    assert hub.source_at_hand(out) == beside
    shutil.rmtree(beside)
    monkeypatch.chdir(source.parent)
    assert hub.source_at_hand(out) == Path.cwd() / source.name
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--org--v4/snapshots/0123456789012345678901234567890123456789"
    shutil.copytree(source, snapshot)
    out = convert(snapshot, "compressed_tensors_mxfp4", tmp_path / "from-cache")
    assert hub.source_at_hand(out) == snapshot
    assert validate(out, snapshot).proven and validate(out, snapshot).against == "org/v4"
    assert "--against org/v4" in (validate(out).check("source").skipped or "")


@pytest.mark.parametrize("content", ["[]", "{}", '{"checksum": 3}', "{", '{"from": "bf16", "to": "bf16"}'])
def test_a_record_that_is_none_is_refused(ours: Callable[..., Path], tmp_path: Path, content: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    (out / "w4afp8/conversion.json").write_text(content)
    assert "w4afp8/conversion.json" in blamed(prove(out))["record"][0]
    assert gate.state(out).state is State.FAILED


# Every byte: 200 trials in two formats, one beside the source, one led back to its proof.
WATCHED = {
    "weights": ("model-0*.safetensors", 120),
    "index": ("model.safetensors.index.json", 20),
    "config": ("config.json", 20),
    "account": ("w4afp8/conversion.json", 20),
    "proof": ("w4afp8/*.json", 20),
}  # files and trials


@pytest.mark.parametrize("kind", WATCHED)
@pytest.mark.parametrize("target", [MODELOPT, "compressed_tensors_mxfp4"])
def test_every_flipped_byte_is_caught(
    published: Callable[[Any, str], Path], ours: Callable[..., Path], tmp_path: Path, kind: str, target: str
) -> None:
    source = ours(SGLANG) if target == MODELOPT else published(GPT_OSS, "gptoss_mxfp4")
    out = convert(source, target, tmp_path / "out")
    beside = None if target == MODELOPT else source
    prove(out, beside)
    pattern, trials = WATCHED[kind]
    chance = random.Random(kind)
    files = sorted(path for path in out.glob(pattern) if path.name != "validation.json")
    missed = []
    for _ in range(trials):
        path = chance.choices(files, [file.stat().st_size for file in files])[0]
        whole = path.read_bytes()
        at, flip = chance.randrange(len(whole)), chance.randrange(1, 256)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        if validate(out, beside).passed:
            missed.append((path.name, at, flip))
        if gate.state(out).state is not State.STALE:
            missed.append((path.name, at, "the old proof stands"))
        path.write_bytes(whole)
    assert not missed
    assert gate.state(out).state is State.PROVEN and validate(out, beside).proven
