"""How Humming is driven: what its layers are made of, what is compiled beforehand.  A stub stands in its place."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from w4afp8.measure.peers import humming
from w4afp8.measure.shapes import Gemm

MOE, DENSE = Gemm("moe", 128, 256, 4, 4, 2), Gemm("dense", 128, 256)
TILES = [(0, 8, {"block_shape": [8, 128, 128]}), (8, 1 << 30, {"block_shape": [64, 128, 128]})]
Compiled = list[tuple[dict[str, Any], dict[str, Any], list[Any]]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """What the stub's kernels were asked for."""
    asked: Compiled = []

    class Layer:
        def __init__(self, weight_config: dict[str, Any], shape_n: int, num_experts: int = 0, **others: Any) -> None:
            what = json.dumps({"n": shape_n, "experts": num_experts, **weight_config})
            mode = SimpleNamespace(value="token")
            names = {"input_quant_mode": mode, "a_dtype": "float8e4m3", "as_dtype": "float32"}
            self.humming_config = SimpleNamespace(**names, to_str=lambda: what)

        def cuda(self) -> Any:
            return self

        def transform(self) -> None:
            assert self.weight.dtype == torch.int32 and self.weight_scale.dtype == torch.bfloat16  # type: ignore[attr-defined]

    def prepare(layer: str, mode: str, tiles: str, device: int) -> None:
        asked.append((json.loads(layer), json.loads(mode), json.loads(tiles)))
        if "grouped_contiguous" in mode:
            raise RuntimeError("does not compile")

    def quantize(x: torch.Tensor, **how: Any) -> Any:
        return x, None, torch.ones(len(x), 1)

    parts = {
        "": {}, ".kernel": {}, ".ops": {"process_input": quantize}, ".layer": {"HummingLayer": Layer},
        ".tune": {"get_heuristics_config": lambda config, device, gemm_type="dense": TILES},
        ".kernel.humming": {"HummingKernel": SimpleNamespace(prepare_kernels=prepare)},
    }  # fmt: skip
    for name, content in parts.items():
        module = ModuleType(f"humming{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["humming"].ops = sys.modules["humming.ops"]  # type: ignore[attr-defined]
    monkeypatch.setattr(humming, "DEVICE", "cpu")
    return asked


def test_every_tile_of_every_mode_is_compiled_once(compiled: Compiled, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert humming.PEER.prepare({MOE: [1, 2, 64], DENSE: [1]}) == 2
    assert "does not compile" in caplog.text, "the other mode and problem were compiled none the less"
    found = {(layer["experts"], mode.get("gemm_type")): [tile["block_shape"][0] for _, _, tile in tiles]
             for layer, mode, tiles in compiled}  # fmt: skip
    assert len(compiled) == 3
    assert found == {(4, "indexed"): [8, 64], (4, "grouped_contiguous"): [8, 64], (0, None): [8]}


def test_weights_without_the_least_code_are_its_other_type(compiled: Compiled) -> None:
    for least, dtype in ((-8, "int4"), (-7, "float4e0m3")):
        humming.PEER.prepare({replace(DENSE, least=least): [1]})
        assert compiled[-1][0]["dtype"] == dtype and compiled[-1][0]["group_size"] == 128
