"""What every test may ask for: the miniature, the golden vectors, a toy of any shape, a seed of its own."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from w4afp8 import formats, pipeline
from w4afp8.recipes._load import build
from w4afp8.recipes._recipe import Recipe
from w4afp8.synthetic import write_checkpoint

REPOSITORY = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40, print_blob=True)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def _power_stays_on() -> Iterator[None]:
    """No test cuts the power, so none waits for a disk; that files are synced, and when, tests/checkpoint asks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Random numbers depend on the test's own id: neither on the order nor on the neighbours."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def miniature() -> Path:
    """The bundled miniature DeepSeek-V3 FP8 checkpoint; read only."""
    return REPOSITORY / "demo/tiny-dsv3"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Vectors that peers' own code produced (README.md there)."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_tensors() -> Callable[[str], dict[str, Tensor]]:
    """The tensors of one golden file."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def miniature_config(miniature: Path) -> dict[str, Any]:
    """The miniature's config.json."""
    content: dict[str, Any] = json.loads((miniature / "config.json").read_text())
    return content


@pytest.fixture(scope="session")
def toy_config(miniature_config: dict[str, Any]) -> dict[str, Any]:
    """The smallest configuration that has everything: 1 dense + 2 MoE layers of 4 experts, 1 MTP layer."""
    return miniature_config | {
        "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8, "qk_head_dim": 24,
    }  # fmt: skip


@pytest.fixture(scope="session")
def _toys(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Callable[..., Path]:
    """Each random FP8 checkpoint that was asked for, written once; read only."""
    home, written = tmp_path_factory.mktemp("toys"), {}

    def find(config: dict[str, Any], **how: Any) -> Path:
        key = json.dumps([config, how], sort_keys=True)
        if key not in written:
            folder = home / str(len(written))
            write_checkpoint(folder, config, tokenizer_from=miniature, **how)
            written[key] = folder
        return written[key]

    return find


@pytest.fixture
def toy(tmp_path: Path, toy_config: dict[str, Any], _toys: Callable[..., Path]) -> Callable[..., Path]:
    """A random FP8 checkpoint of the toy's shape, some fields of its config changed: the test's own copy."""

    def write(name: str = "toy", dtype: Any = "fp8", shard_gb: float = 0.0005, seed: int = 0, **changes: Any) -> Path:
        config = {key: value for key, value in (toy_config | changes).items() if value is not ...}
        found = _toys(config, dtype=dtype, shard_gb=shard_gb, seed=seed)
        return Path(shutil.copytree(found, tmp_path / name, dirs_exist_ok=True))

    return write


@pytest.fixture
def small_recipe() -> Callable[..., Recipe]:
    """A recipe with few tokens; `options` are the method's, the other keys as in YAML."""

    def make(method: str = "rtn", options: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "method": {"name": method, "options": options or {}},
            "calibration": {"tokens": 256, "sequence": 64},
            "output": {"shard_gb": 0.0002},
        }
        return build(content | changes, "a test's recipe")

    return make


@pytest.fixture
def w4afp8(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: (exit code, standard output, standard error)."""
    from w4afp8.cli import cli, code_of

    def invoke(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        code = code_of(lambda: cli.main(args=words, prog_name="w4afp8", standalone_mode=False))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return invoke


@pytest.fixture(scope="session")
def quantized_toys(
    tmp_path_factory: pytest.TempPathFactory, toy_config: dict[str, Any], miniature: Path
) -> Callable[[str], tuple[Path, Path]]:
    """A random source of one dense and one MoE layer, and what the program made of it in a format; read only."""
    home = tmp_path_factory.mktemp("quantized-toy")
    config = toy_config | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    write_checkpoint(home / "source", config, seed=3, shard_gb=0.0005, tokenizer_from=miniature)

    @cache
    def quantize(format_name: str) -> tuple[Path, Path]:
        out = home / f"toy-{format_name}"
        recipe = {
            "method": {"name": "rtn"}, "calibration": {"tokens": 256, "sequence": 64},
            "scheme": formats.checkpoint(format_name).scheme, "output": {"shard_gb": 0.0005, "format": format_name},
        }  # fmt: skip
        pipeline.run(pipeline.prepare(home / "source", build(recipe, "a test's recipe"), out))
        return home / "source", out

    return quantize


@pytest.fixture(scope="session")
def quantized_toy(quantized_toys: Callable[[str], tuple[Path, Path]]) -> tuple[Path, Path]:
    """The source and the W4AFP8 output as SGLang reads it."""
    return quantized_toys("sglang_w4afp8")
