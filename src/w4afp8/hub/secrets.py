"""Secrets that must not leave this machine inside a side file.  What is found is named, never shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# Each needs enough random letters after its mark that no vocabulary, digest or base64 image holds one by chance.
PATTERNS: Mapping[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z]{30,}\b"),
    "a Hugging Face organization token": re.compile(rb"\bapi_org_[A-Za-z]{30,}\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    "an AWS secret key": re.compile(rb"(?i)aws_?secret_?access_?key\W{1,6}[A-Za-z0-9/+]{40}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "a Slack token": re.compile(rb"\bxox[baprs]-[A-Za-z0-9-]{20,}"),
    "a Google API key": re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b"),
    "an OpenAI or Anthropic key": re.compile(rb"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{40,}"),
}


def scan(files: Mapping[str, Path]) -> list[str]:
    """One line per finding: file, line number, kind.  Every file is read whole; weights do not belong here."""
    return [f"{name}, line {line}: {kind}" for name, path in files.items() for line, kind in _scan_lines(path)]


def _scan_lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            for kind, pattern in PATTERNS.items():
                if pattern.search(line):
                    yield number, kind
