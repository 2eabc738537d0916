"""The scan finds what must not leave, names it, never shows it, and leaves vocabularies in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from w4afp8.hub.secrets import PATTERNS, scan

SAMPLES = {
    "a Hugging Face token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "a Hugging Face organization token": "api_org_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "a private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "an AWS secret key": "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a Slack token": "xoxb-" + "123456789012-abcdefghij",
    "a Google API key": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "an OpenAI or Anthropic key": "sk-ant-" + "a1B2" * 12,
}


def test_every_pattern_has_a_sample() -> None:
    assert SAMPLES.keys() == PATTERNS.keys()


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("frame", ["{}", 'key: "{}"\n', "first\n\nthird = {};\n", '{{"a": "{}"}}'])
def test_a_secret_is_named_with_its_line(tmp_path: Path, kind: str, frame: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\xff\n" + frame.format(SAMPLES[kind]).encode())
    found = scan({"notes.txt": path})
    line = 2 + frame.split("{}")[0].count("\n")
    assert found == [f"notes.txt, line {line}: {kind}"]
    assert SAMPLES[kind] not in found[0]


def test_what_only_looks_like_one_is_left_in_peace(tmp_path: Path, miniature: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(
        "hf_hub hf_transfer hf_quant_config AKIA sk-learn sk-12 BEGIN PUBLIC KEY\n" + "0123456789abcdef" * 40
    )
    assert scan({"words.txt": path, **{p.name: p for p in miniature.glob("*.json")}}) == []
