"""The source of a conversion: gone, changed since, another one; and what the record says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conversions import (
    CT,
    GPT_OSS,
    MODELOPT,
    SGLANG,
    V4,
    V4_STEM,
    Ours,
    Published,
    Toys,
    blamed,
    convert,
    edit,
    forge,
    last_bit,
    prove,
    untested,
)
from rtn_writer import write_json
from torch import Tensor

from w4afp8 import hub
from w4afp8.checkpoint.lineage import checksum, read_lineage, write_lineage
from w4afp8.synthetic import write_checkpoint
from w4afp8.validate import gate, validate
from w4afp8.validate.converted import needs_source
from w4afp8.validate.gate import State
from w4afp8.validate.route import Kind, kind_of


def test_without_source_and_proof_it_says_what_is_missing(published: Published, tmp_path: Path) -> None:
    out = convert(published(V4, "deepseek_mxfp4"), "compressed_tensors_mxfp4", tmp_path / "out")
    report = prove(out)
    assert report.passed and not report.proven
    assert {"numbers", "carried", "source", "source proof"} <= set(untested(report))
    assert "digests" not in untested(report)
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
    published: Published, ours: Ours, quantized_toys: Toys, tmp_path: Path
) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    original = quantized_toys(SGLANG)[0]
    (said,) = blamed(validate(out, original))["source"]
    assert "experts in deepseek_fp8, expected in sglang_w4afp8" in said and "that was converted" in said


def test_an_unproven_source_proves_nothing(ours: Ours, tmp_path: Path) -> None:
    source = ours(SGLANG, proven=False)
    out = convert(source, MODELOPT, tmp_path / "out")
    assert not (out / "w4afp8/source-validation.json").exists()
    report = prove(out, source)
    assert report.passed and untested(report) == ["source proof"]
    assert "validate it beside its own source, then this again" in str(gate.state(out))


def test_the_source_that_is_given_decides_which_proof_it_is(ours: Ours, quantized_toys: Toys, tmp_path: Path) -> None:
    quantized, original = ours(SGLANG), quantized_toys(SGLANG)[0]
    out = convert(quantized, CT, tmp_path / "out")
    assert kind_of(out, original) is Kind.QUANTIZED and kind_of(out, quantized) is Kind.CONVERTED
    assert kind_of(out, None) is Kind.CONVERTED and kind_of(out, None, look=True) is Kind.QUANTIZED
    assert all(validate(out, source).proven for source in (original, quantized, None))
    (out / "w4afp8/source-validation.json").unlink()
    assert kind_of(out, None) is Kind.QUANTIZED


def test_a_source_at_hand_is_found_where_it_lies(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
def test_a_record_that_is_none_is_refused(ours: Ours, tmp_path: Path, content: str) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    (out / "w4afp8/conversion.json").write_text(content)
    assert "w4afp8/conversion.json" in blamed(prove(out))["record"][0]
    shutil.copy(out / "w4afp8/conversion.json", tmp_path)
    source = tmp_path / f"ours-{SGLANG}"
    both = convert(source, CT, tmp_path / "ct")  # what `quantize` writes too
    shutil.copy(tmp_path / "conversion.json", both / "w4afp8")
    assert "w4afp8/conversion.json" in blamed(validate(both, source))["record"][0]
    assert gate.state(out).state is State.FAILED


def test_a_proof_of_another_config_leads_nowhere(ours: Ours, tmp_path: Path) -> None:
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


def test_a_record_of_impossible_headers_is_refused(ours: Ours, tmp_path: Path) -> None:
    out = convert(ours(SGLANG), MODELOPT, tmp_path / "out")
    lineage = read_lineage(out)
    few = dict(list(lineage.source.tensors.items())[3:])
    write_lineage(out, replace(lineage, source=replace(lineage.source, tensors=few)))
    report = prove(out)
    assert "a source that is none" in blamed(report)["record"][0] and "numbers" in untested(report)
    content = json.loads((out / "w4afp8/conversion.json").read_text())
    for key, value in (("tool", "me"), ("source", content["source"] | {"hub_id": 3})):
        changed = {name: said for name, said in (content | {key: value}).items() if name != "checksum"}
        write_json(out / "w4afp8/conversion.json", {"checksum": checksum(changed), **changed})
        assert "is no record of a conversion" in blamed(validate(out))["record"][0]


def test_what_only_has_the_sources_name_is_not_taken_for_it(
    published: Published, ours: Ours, tmp_path: Path, w4afp8: Callable[..., tuple[int, str, str]]
) -> None:
    source = Path(shutil.copytree(published(V4, "deepseek_mxfp4"), tmp_path / "v4"))
    out = convert(source, "compressed_tensors_mxfp4", tmp_path / "out")
    shutil.rmtree(source)
    shutil.copytree(published(GPT_OSS, "gptoss_mxfp4"), source)
    code, _, err = w4afp8("validate", out)
    assert code == 0, err
    assert "v4 is not here" in str(gate.state(out))
    lineage = read_lineage(out)
    write_lineage(out, replace(lineage, source=replace(lineage.source, hub_id="no/such/name here")))
    assert hub.source_at_hand(out) is None
