"""The card says what is recorded, says what is unknown, and invents nothing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from w4afp8 import formats
from w4afp8.card import engines, write
from w4afp8.card.source import OURS
from w4afp8.cli import cli, code_of
from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.families import LAYOUT_METHOD
from w4afp8.validate import gate
from w4afp8.validate.findings import Check, ValidationReport
from w4afp8.validate.seal import take_seal

RECORD: dict[str, Any] = {
    "tool": {"name": "w4afp8", "version": "9.8.7", "torch": "1.2.3"},
    "format": "sglang_w4afp8", "method": "awq", "mtp": "drop", "mtp_layers": 1, "bits_per_weight": 4.25,
    "recipe": {"activations": {"headroom": 2.0},
               "calibration": {"data": ["/somebody/private/text.jsonl", "org/set"], "sequence": 512, "seed": 3}},
    "calibration": {"tokens": 4096, "sha256": "feed"},
    "tensors_by_role": {
        "attention": {"count": 5, "bytes_in": 1000, "bytes_out": 1000, "format": "deepseek_fp8"},
        "routed expert": {"count": 9, "bytes_in": 8000, "bytes_out": 4250, "format": "sglang_w4afp8"},
        "router": {"count": 9, "bytes_in": 10, "bytes_out": 10, "format": "bf16, f32"},
    },
    "layers": [{"layer": 1, "tokens_per_expert": [7, 0, 99], "error": {"rtn": 0.04, "chosen": 0.01}}],
}  # fmt: skip
EVALUATION = {
    "kl": 0.0123, "perplexity": 5.4321, "source_perplexity": 5.1234, "top1_agreement": 0.987, "data": "held-out.jsonl",
    "sequences": 4, "sequence": 256, "activations": "token",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a record and two weight files of any bytes."""
    out = tmp_path / "tiny-W4AFP8"
    (out / "w4afp8").mkdir(parents=True)
    (out / "config.json").write_text(json.dumps({"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 2}))
    (out / "w4afp8/record.json").write_text(json.dumps(RECORD))
    for name in ("b.safetensors", "a.safetensors"):
        (out / name).write_bytes(name.encode())
    return out


def prove(folder: Path, source: dict[str, Any] | None = None) -> None:
    """A verdict that all is well."""
    report = ValidationReport("1", folder.name, "source", "sglang_w4afp8", None, [Check("all", "holds", 1)])
    gate.write_verdict(folder, report, take_seal(folder), source)


def text_of(folder: Path, **named: Any) -> str:
    write(folder, **named)
    return (folder / "README.md").read_text()


def test_the_metadata_is_what_the_hub_reads(folder: Path) -> None:
    card = ModelCard(text_of(folder, base_model="org/source"))
    data = card.data.to_dict()
    assert data["base_model"] == "org/source" and data["base_model_relation"] == "quantized"
    assert data["license"] == "unknown" and data["pipeline_tag"] == "text-generation"
    assert {"w4afp8", "int4", "moe", "sglang", "tensorrt-llm"} <= set(data["tags"])


def test_what_is_recorded_is_said(folder: Path) -> None:
    text = text_of(folder, model="org/name")
    for words in ("| **routed expert** | sglang_w4afp8 | 4.25 with scales | 8 kB | 4.25 kB |",
                  "| router | bf16, f32 | 16 and 32 |", "2 x the largest activation", "4,096 tokens",
                  "sequences of 512",
                  "text.jsonl, org/set", "`feed`", "at least 0 (layer 1, expert 1), median 7", "1 expert of 3 saw none",
                  "| Multi-token prediction | dropped (1 layer) |", "w4afp8 9.8.7", "torch 1.2.3",
                  "--model-path org/name", "25 % of plain rounding's"):  # fmt: skip
        assert words in text, words
    assert "/somebody" not in text


def test_a_converted_checkpoint_is_served_by_the_engine_that_reads_it(folder: Path) -> None:
    (folder / "w4afp8/record.json").write_text(json.dumps(RECORD | {"format": "compressed_tensors_w4a8"}))
    text = text_of(folder, model="org/name")
    assert "vllm serve org/name" in text and "sglang.launch_server" not in text
    assert "| **routed expert** | compressed_tensors_w4a8 |" in text
    assert "scale token by token" in text and "kept in `w4afp8/act_scales.safetensors`, outside the index" in text
    assert "vllm" in ModelCard(text).data.tags


@pytest.mark.parametrize("base", [None, "org/source"])
def test_four_bits_that_were_converted_to_more_say_both(folder: Path, base: str | None) -> None:
    (folder / "w4afp8/conversion.json").write_text(json.dumps({"from": "deepseek_mxfp4", "to": "deepseek_fp8"}))
    (folder / "w4afp8/record.json").write_text(json.dumps(RECORD | {"format": "deepseek_fp8"}))
    assert "routed experts quantized to 4 bits and stored in 8" in text_of(folder, base_model=base)
    (folder / "w4afp8/record.json").write_text(json.dumps(RECORD))
    assert "stored in" not in text_of(folder, base_model=base)


def test_a_converted_checkpoint_is_made_again_in_two_steps(folder: Path) -> None:
    (folder / "w4afp8/conversion.json").write_text(json.dumps({"to": "compressed_tensors_w4a8"}))
    made = "-o QUANTIZED\nw4afp8 convert QUANTIZED --format compressed_tensors_w4a8 -o tiny-W4AFP8\n```"
    assert made in text_of(folder)


@pytest.mark.parametrize("name", formats.targets())
def test_every_format_has_an_engine_with_a_command_and_its_element_types(folder: Path, name: str) -> None:
    (folder / "w4afp8/record.json").write_text(json.dumps(RECORD | {"format": name}))
    text = text_of(folder)
    commands = re.findall(r"^[A-Za-z-]+:\n\n```bash\n(.*)\n```", text, re.M)
    assert commands and all("tiny-W4AFP8" in command for command in commands)
    tags = set(ModelCard(text).data.tags)
    assert (
        len({"int4", "mxfp4"} & tags) == 1 and tags & {"sglang", "vllm"} and not any(set(t) & set(", (") for t in tags)
    )
    assert ("FP8 (e4m3)" in text) == ("int4" in tags)


def test_an_engine_that_reads_it_under_a_condition_gets_no_command() -> None:
    readers = ("SGLang, vLLM (of a day)", "TensorRT-LLM >= 1 (odd)", "Other where linears have 16 bits")
    assert engines.names(readers) == ["SGLang", "vLLM", "TensorRT-LLM"]
    assert [name for name, _ in engines.commands(readers, "m")] == ["SGLang", "TensorRT-LLM", "vLLM"]
    assert engines.commands(("SGLang where linears have 16 bits",), "m") == []


def test_what_is_not_known_is_said_to_be_so(folder: Path) -> None:
    (folder / "w4afp8/record.json").write_text(json.dumps({"format": "of another day"}))
    text = text_of(folder)
    for words in ("Which model on the Hub it was made from is not recorded", "| Base model | unknown |",
                  "| Licence | unknown",
                  "| Size | unknown |", "Which engines read this format is not recorded", "Not evaluated.",
                  "Not proven.", "No checksum", "Not recorded.", "activation scales is not recorded",
                  "| Multi-token prediction | unknown |"):  # fmt: skip
        assert words in text, words
    assert "base_model" not in ModelCard(text).data.to_dict()


def test_a_proof_brings_the_base_model_and_a_checksum_that_anyone_can_check(folder: Path) -> None:
    prove(folder, {"name": "org/model", "hub_id": "org/model", "revision": "abc"})
    text = text_of(folder)
    lines = [f"{hashlib.sha256(n.encode()).hexdigest()}  {n}\n" for n in ("a.safetensors", "b.safetensors")]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() in text
    assert "**Proven**" in text and ModelCard(text).data.base_model == "org/model"
    assert gate.state(folder).state is gate.State.PROVEN, "a card made the proof stale"
    (folder / "a.safetensors").write_bytes(b"A.safetensors")
    text = text_of(folder)
    assert "Not proven.** stale: a.safetensors has other bytes" in text and "No checksum" in text


def test_an_evaluation_becomes_a_row(folder: Path) -> None:
    (folder / "w4afp8/evaluation.json").write_text(json.dumps([EVALUATION, EVALUATION | {"activations": "static"}]))
    text = text_of(folder)
    assert "| held-out.jsonl | 1,024 | token | 0.0123 | 5.432 | 5.123 | 98.7 % |" in text
    (folder / "w4afp8/evaluation.json").write_text(json.dumps([EVALUATION | {"data": "a|b.txt"}]))
    assert "| a\\|b.txt |" in text_of(folder), "a name broke the table"
    assert "| static |" in text and "Not evaluated" not in text


def test_the_sources_card_stands_aside_and_its_licence_is_kept(folder: Path) -> None:
    theirs = "---\nlicense: mit\nlanguage: [en]\nbase_model: another/one\n---\n# Their model\n"
    (folder / "README.md").write_text(theirs)
    card = write(folder)
    text = (folder / "README.md").read_text()
    assert card.source_card_kept and (folder / "w4afp8/source-card.md").read_text() == theirs
    assert "Their model" not in text and "source-card.md" in text
    head = ModelCard(text).data.to_dict()
    assert (head["license"], head["language"]) == ("mit", ["en"])
    assert "base_model" not in head, "the source's base is not this one's"
    assert text_of(folder) == text, "written twice, another card"


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("LICENSE", "MIT License\n\nCopyright", "mit"),
        ("LICENSE.txt", "\n   Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE-MODEL", "Some terms of our own", "other"),
        ("COPYING", "MIT License", "unknown"),
    ],
)
def test_a_licence_file_is_recognised_or_not(folder: Path, name: str, content: str, licence: str) -> None:
    (folder / name).write_text(content)
    assert ModelCard(text_of(folder)).data.license == licence


@pytest.mark.parametrize(
    "head", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "no head", "---\nlicense: {a: b}\n---\n"]
)
def test_a_broken_head_says_nothing(folder: Path, head: str) -> None:
    (folder / "README.md").write_text(head)
    assert ModelCard(text_of(folder)).data.license == "unknown"


def test_a_base_model_is_remembered_and_must_be_a_hub_id(folder: Path) -> None:
    write(folder, base_model="org/source")
    assert write(folder).base_model == "org/source"
    for bad in ("source", "a/b/c", "a b/c", "x/y\nz"):
        with pytest.raises(RecipeError, match="expected ORG/NAME"):
            write(folder, base_model=bad)


def test_a_forced_card_says_so(folder: Path) -> None:
    assert "Published without a proof" in text_of(folder, forced="a trial") and "a trial" in text_of(
        folder, forced="a trial"
    )


def test_nothing_to_describe_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        write(tmp_path / "none")
    (folder / "w4afp8/record.json").unlink()
    with pytest.raises(CheckpointError, match=r"found no w4afp8/record\.json"):
        write(folder)
    assert not (folder / "README.md").exists()


def test_the_command_says_what_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lambda *words: code_of(lambda: cli.main(args=list(words), standalone_mode=False))  # noqa: E731
    assert run("card", str(folder), "--base-model", "org/x", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["base_model"], said["license"], said["state"]) == ("org/x", None, "unvalidated")
    assert run("card", str(folder)) == 0
    assert "base model org/x" in capsys.readouterr().out
    assert OURS in (folder / "README.md").read_text()


def test_a_layout_whose_scales_were_searched_says_how_far_they_stand(folder: Path) -> None:
    block = {
        "quant_method": LAYOUT_METHOD, "layout": "vllm-cutlass", "layout_version": 1, "read_by": "vLLM",
        "tensor_parallel": 1, "expert_parallel": 1, "w13": ["gate", "up"], "canonical_sha256": "feed",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"quantization_config": block}))
    (folder / "w4afp8/layout.json").write_text(json.dumps({"tolerance": 0.0323}))
    text = text_of(folder)
    assert "each stands within 3.23 % of the true one (`--tolerance 0.0323`)" in text
    assert "--layout vllm-cutlass --tp 1 --ep 1 --tolerance 0.0323 -o" in text
    assert "The stacks of this layout hold no static activation scales" in text
    (folder / "w4afp8/layout.json").write_text(json.dumps({"tolerance": 0.0}))
    assert "tolerance" not in text_of(folder)


def test_the_size_before_is_that_of_what_was_quantized(folder: Path) -> None:
    """Of what was converted afterwards too, though the validation compared with the 4-bit directory."""
    (folder / "w4afp8/conversion.json").write_text(json.dumps({"from": "sglang_w4afp8", "to": "modelopt_w4a8_awq"}))
    (folder / "w4afp8/validation.json").write_text(json.dumps({"bytes_source": 5260, "bytes_out": 5300}))
    assert "the source's was 9.01 kB" in text_of(folder)
