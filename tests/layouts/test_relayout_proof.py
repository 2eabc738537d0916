"""A proof travels from the checkpoint to its layout; the commands as people type them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from relayouts import SHARD_GB, Make, back, files, into, prove
from safetensors.torch import save_file

from w4afp8 import conversion
from w4afp8.card import write as write_card
from w4afp8.checkpoint import atomic
from w4afp8.hub import shipment
from w4afp8.validate import gate, validate


def test_a_proof_of_the_canonical_checkpoint_proves_the_layout(
    quantized_toy: tuple[Path, Path], tmp_path: Path
) -> None:
    origin, canonical = quantized_toy
    source = tmp_path / "toy-W4AFP8"
    shutil.copytree(canonical, source)
    into(source, "sm90", tmp_path / "early")
    assert prove(source, origin)
    into(source, "sm90", tmp_path / "late", ep=2)
    assert prove(tmp_path / "late"), "the proof travels with the bytes"
    assert not prove(tmp_path / "early"), "nothing was proven then"
    assert prove(tmp_path / "early", source), "the canonical directory has been proven since"
    save_file({"x": torch.ones(1)}, source / "x.safetensors")
    assert prove(tmp_path / "early", source), "what is no shard of it is no part of the checksum"
    (source / "x.safetensors").unlink()
    report = validate(tmp_path / "early", origin)
    assert not report.passed and "another checkpoint" in str(report.problems[0])
    assert gate.state(tmp_path / "late").state is gate.State.PROVEN
    card = write_card(tmp_path / "late").path.read_text()
    assert "in the runtime layout `sm90` (version 1)" in card and "**Proven**" in card
    assert "torch.ops.w4afp8.fused_moe" in card and "1 tensor-parallel x 2 expert-parallel" in card
    assert gate.state(tmp_path / "late").state is gate.State.PROVEN, "a card is no part of what was proven"
    phases = {phase.title: [file.name for file in phase.files] for phase in shipment.pack(tmp_path / "late", {})}
    assert all(name.endswith(".safetensors") for name in phases["weights"])
    assert any(name.startswith("rank-1-of-2/") for name in phases["weights"])
    assert sorted(phases["index and config"]) == sorted(
        f"{tag}{name}" for tag in ("", "rank-0-of-2/", "rank-1-of-2/")
        for name in ("config.json", "model.safetensors.index.json")
    )  # fmt: skip
    back(tmp_path / "late", tmp_path / "again")
    assert files(tmp_path / "again") == files(source), "the verdict and the report come back too"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_stale_proof_does_not_travel(quantized_toy: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """The tensors are those that were proven; what an engine makes of them stands in other files."""
    origin, canonical = quantized_toy
    source = Path(shutil.copytree(canonical, tmp_path / "toy-W4AFP8"))
    assert prove(source, origin)
    content = json.loads((source / name).read_text()) | {"routed_scaling_factor": 9.0}
    atomic.write_json(source / name, content)
    assert gate.state(source).state is gate.State.STALE
    into(source, "sm90", tmp_path / "laid")
    for against in (None, source):
        (problem,) = validate(tmp_path / "laid", against).problems
        assert problem.who == name and problem.then == "validate the canonical checkpoint, then convert it again"


def test_a_conversion_is_laid_out_and_comes_back_proven(quantized_toy: tuple[Path, Path], tmp_path: Path) -> None:
    origin, canonical = quantized_toy
    source = Path(shutil.copytree(canonical, tmp_path / "toy-W4AFP8"))
    assert prove(source, origin)
    converted = tmp_path / "ct"
    conversion.run(conversion.prepare(source, "compressed_tensors_w4a8", converted, SHARD_GB))
    shutil.rmtree(source)
    assert prove(converted)
    into(converted, "sm90", tmp_path / "laid", ep=2)
    assert prove(tmp_path / "laid")
    back(tmp_path / "laid", tmp_path / "again")
    assert files(tmp_path / "again") == files(converted)
    assert gate.state(tmp_path / "again", deep=True).state is gate.State.PROVEN
    assert prove(tmp_path / "again"), "led back to what was quantized"


def test_inside_a_checkpoint_no_further_words_are_needed(
    int4: Make, tmp_path: Path, w4afp8: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = int4(num_hidden_layers=2)
    monkeypatch.chdir(source)
    code, text, err = w4afp8("convert", "--layout", "sm90")
    assert code == 0 and "read back from its stack" in text, err
    assert (tmp_path / "int4-sm90" / "config.json").is_file(), "beside the checkpoint, not in it"
    monkeypatch.chdir(tmp_path)
    code, text, _ = w4afp8("inspect", "int4-sm90")
    assert code == 0 and "layout sm90 version 1" in text and "w13_scale" in text
    code, text, _ = w4afp8("convert", "int4-sm90", "--layout", "canonical", "--json")
    assert code == 0 and json.loads(text)["output"] == "int4-sm90-canonical"
    assert files(tmp_path / "int4-sm90-canonical") == files(source)
    code, text, _ = w4afp8("convert", "int4", "--layout", "sglang-cutlass", "--ep", "2", "--json")
    said = json.loads(text)
    assert code == 0 and (said["layout"], said["ep"], said["from"]) == ("sglang-cutlass", 2, "sglang_w4afp8")
    code, text, _ = w4afp8("inspect", "int4-sglang-cutlass/rank-1-of-2")
    assert code == 0 and "rank 1 of 2, experts 2..3" in text
    code, text, _ = w4afp8("validate", "int4-sglang-cutlass")
    assert code == 0 and "canonical proof" in text
    assert "sglang-cutlass" in (tmp_path / "int4-sglang-cutlass" / "w4afp8" / "report.html").read_text()


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "give either --format (bf16, "),
        (("--format", "compressed_tensors_w4a8", "--layout", "sm90"), "give either --format (bf16, "),
        (("--format", "compressed_tensors_w4a8", "--tp", "2"), "belong to a --layout"),
        (("--layout", "canonical", "--ep", "2"), "belong to a --layout"),
        (("--layout", "canonical", "--shard-gb", "2"), "the shards that there were"),
        (("--layout", "canonical", "--shard-gb", "5"), "the shards that there were"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    tmp_path: Path, w4afp8: Callable[..., tuple[int, str, str]], words: tuple[str, ...], says: str
) -> None:
    code, _, err = w4afp8("convert", tmp_path, *words)
    assert code == 2 and says in " ".join(err.split())
