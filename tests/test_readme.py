"""The README's example, run word for word; the Hub is the one on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from w4afp8.checkpoint.reader import CONFIG
from w4afp8.validate import gate

sys.path.insert(0, str(Path(__file__).parent / "hub"))
from fake_hub import TOKEN, FakeHub

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `w4afp8` is this source tree's, and the demo stands in the working directory."""
    program = tmp_path / "bin" / "w4afp8"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m w4afp8.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "demo").symlink_to(REPOSITORY / "demo")
    return {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY / "src"),
        "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        server.namespaces = {"my-org"}
        yield server


def test_the_example_runs_word_for_word(hub: FakeHub, shell: dict[str, str], tmp_path: Path) -> None:
    section = README.split("## From a source to the Hub\n")[1].split("\n## ")[0]
    examples = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    done = subprocess.run(
        ["bash", "-e", "-c", "".join(examples)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env=shell | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every file compared" in done.stdout and TOKEN not in done.stdout + done.stderr
    commands = [line.split()[1] for line in examples[0].splitlines()]
    assert commands == ["quantize", "convert", "validate", "push"], "the main path, one story"
    tree = hub.repos["my-org/tiny-dsv3-vllm"].trees["main"]
    for name, entry in tree.items():
        assert hub.content(entry) == (tmp_path / "tiny-dsv3-vllm" / name).read_bytes(), name
    card = hub.content(tree["README.md"]).decode()
    assert "**Proven**" in card and "vllm serve my-org/tiny-dsv3-vllm" in card
    assert CONFIG in tree and hub.seen["xorb"] > 0, "through Xet, as everywhere by default"
    assert gate.state(tmp_path / "tiny-dsv3-W4AFP8-sm90").state is gate.State.PROVEN


def test_completion_is_what_the_readme_says(shell: dict[str, str]) -> None:
    for name in ("bash_source", "zsh_source", "fish_source"):
        assert name in README
    done = subprocess.run(
        ["w4afp8"], env=shell | {"_W4AFP8_COMPLETE": "bash_complete", "COMP_WORDS": "w4afp8 pu", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["plain,push"]
    done = subprocess.run(
        ["w4afp8"], capture_output=True, text=True, check=True,
        env=shell | {"_W4AFP8_COMPLETE": "bash_complete", "COMP_WORDS": "w4afp8 push --pr", "COMP_CWORD": "2"},
    )  # fmt: skip
    assert done.stdout.split() == ["plain,--private"]
    for name in ("bash", "zsh", "fish"):
        script = subprocess.run(["w4afp8"], env=shell | {"_W4AFP8_COMPLETE": f"{name}_source"}, capture_output=True,
                                text=True, check=False)  # fmt: skip
        assert script.returncode == 0 and "_W4AFP8_COMPLETE" in script.stdout, script.stderr


@pytest.mark.parametrize("no_color", ["1", None])
def test_no_color_is_honoured(shell: dict[str, str], no_color: str | None) -> None:
    """Even where a terminal is forced."""
    environment = shell | {"FORCE_COLOR": "1", "TERM": "xterm-256color"} | ({"NO_COLOR": no_color} if no_color else {})
    done = subprocess.run(
        ["w4afp8", "recipes", "show", "none"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert ("\x1b[1;31m" in done.stderr) == (no_color is None), "the colour of an error"
