"""A converted directory goes to the Hub without --force: the gate takes its proof, and the card says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from huggingface_hub import snapshot_download

from w4afp8 import conversion
from w4afp8.checkpoint import atomic
from w4afp8.checkpoint.lineage import checksum
from w4afp8.errors import ValidationError
from w4afp8.hub.push import Order, push
from w4afp8.synthetic import write_checkpoint
from w4afp8.validate import gate, validate
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import take_seal

REPO = "org/converted"
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_local_experts": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2, "architectures": ["GptOssForCausalLM"],
}  # fmt: skip


def prove(folder: Path, source: Path | None = None) -> None:
    seal, report = take_seal(folder), validate(folder, source)
    gate.write_verdict(folder, report, seal, origin_of(source) if source else None)


def send(folder: Path, **options: Any) -> Any:
    return push(folder, Order(REPO, True, **options), pause=lambda seconds: None)


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, Path]:
    """A published gpt-oss in the Hub's cache, of a family without a forward pass, and what became of it."""
    source = tmp_path / "models--org--oss/snapshots/abc"
    write_checkpoint(source, GPT_OSS, dtype="gptoss_mxfp4")
    (source / "LICENSE").write_text("MIT License\n")
    out = tmp_path / "oss-ct"
    conversion.run(conversion.prepare(source, "compressed_tensors_mxfp4", out, 1.0))
    return source, out


def test_a_proven_conversion_is_sent_and_what_is_downloaded_is_proven(
    hub: FakeHub, converted: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = converted
    with pytest.raises(ValidationError, match="is unvalidated"):
        send(out)
    prove(out)
    with pytest.raises(ValidationError, match=r"org/oss is not here, and had no proof.*--against org/oss"):
        send(out)
    assert hub.seen["commit"] == 0
    prove(out, source)
    assert send(out).state == "proven"
    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back", endpoint=hub.url))
    assert gate.state(back, deep=True).state is gate.State.PROVEN
    assert validate(back, source).proven
    card = (back / "README.md").read_text()
    for words in (
        "base_model: org/oss", "`org/oss`, in the `compressed_tensors_mxfp4` format", "license: mit",
        "**Proven** by `w4afp8 validate`: every number is that of org/oss", "none: converted, every number kept",
        "from `gptoss_mxfp4` to `compressed_tensors_mxfp4`, no number changed", "nothing was rounded",
        "w4afp8 convert org/oss --format compressed_tensors_mxfp4", "w4afp8/conversion.json",
    ):  # fmt: skip
        assert words in card, words
    assert "| routed expert | compressed_tensors_mxfp4 | 4 |" in card and "## What stands in which format" in card
    assert json.loads((back / "w4afp8/record.json").read_text())["bits_per_weight"] == 4.25
    for words in ("quantized to 4 bits", "recipe.yaml", "unknown", "Not recorded"):
        assert words not in card, words
    assert str(tmp_path) not in card + (back / "w4afp8/conversion.json").read_text()


def test_a_conversion_that_changed_since_is_not_sent(hub: FakeHub, converted: tuple[Path, Path]) -> None:
    source, out = converted
    prove(out, source)
    path = out / "w4afp8/conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"to": "bf16"}))
    with pytest.raises(ValidationError, match=r"stale.*conversion.json"):
        send(out)
    prove(out, source)
    with pytest.raises(ValidationError, match=r"failed.*was changed after the conversion"):
        send(out)


def test_a_quantized_model_keeps_its_base_through_a_conversion(hub: FakeHub, proven: Path, tmp_path: Path) -> None:
    """The proof of what was converted names what was quantized."""
    verdict = json.loads((proven / "w4afp8/validation.json").read_text())
    del verdict["checksum"]
    verdict["source"] = {"name": "org/base", "hub_id": "org/base", "revision": "abc"}

    atomic.write_json(proven / "w4afp8/validation.json", {"checksum": checksum(verdict), **verdict})
    out = tmp_path / "toy-modelopt"
    conversion.run(conversion.prepare(proven, "modelopt_w4a8_awq", out, 1.0))
    prove(out)
    assert send(out).state == "proven"
    card = (out / "README.md").read_text()
    assert "base_model: org/base" in card and "with its routed experts quantized to 4 bits" in card
    assert "led back to sglang_w4afp8" in card and "convert QUANTIZED --format modelopt_w4a8_awq" in card
