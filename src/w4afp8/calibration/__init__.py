"""Text to tokens: what the model reads while it is measured."""

from pathlib import Path

BUNDLED = "bundled"
BUNDLED_TEXT = Path(__file__).parent / "text.jsonl"
