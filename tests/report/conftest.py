"""A finished directory as the report finds it: two layers of four experts, one of them for multi-token prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w4afp8.validate.findings import Check, ExpertError, LayerNumbers, ValidationReport


def expert(number: int, rtn: float, chosen: float) -> dict[str, Any]:
    pair = {"rtn": rtn, "chosen": chosen}
    return {"expert": number, "tokens": 100 + number, "gate_up": pair, "down": pair, "fold_alpha": [0.25, 0.5]}


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "tool": {"name": "w4afp8", "version": "0.1.0"},
        "format": "sglang_w4afp8",
        "method": "awq",
        "mtp": "quantize",
        "bits_per_weight": 4.25,
        "calibration": {"tokens": 65536, "sha256": "ab" * 32},
        "digests": {"a.weight": "00" * 32},
        "tensors_by_role": {
            "routed expert": {"count": 24, "bytes_in": 2_000_000, "bytes_out": 1_000_000, "format": "sglang_w4afp8"},
            "attention": {"count": 9, "bytes_in": 500_000, "bytes_out": 500_000, "format": "deepseek_fp8"},
        },
        "layers": [
            {
                "layer": layer,
                "tokens_per_expert": [100, 101, 102, 103 + layer],
                "experts": [expert(e, 0.04, 0.01 + 0.001 * e) for e in range(4)],
                "fold": {"kept": True, "alpha": 0.5, "beta": 0.5},
                "amax": {"gate_up": 12.0, "down": 60.0},
                "input_scale": {"gate_up": 0.05, "down": 0.27},
                "error": {"rtn": 0.04, "chosen": 0.01},
            }
            for layer in (1, 2)
        ],
    }


@pytest.fixture
def validation() -> ValidationReport:
    report = ValidationReport("0.1.0", "tiny-W4AFP8", "tiny-dsv3", "sglang_w4afp8", None)
    report.checks = [Check("index", "the index is true", 30), Check("grouped GEMM", "the op equals float64", 8)]
    sites = {"amax": 12.0, "scale": 0.05, "range": 22.4, "clipped": 0.0, "error": 0.026}
    for layer in (1, 2):
        weights = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 0.012)
        experts = [ExpertError(e, 5, 0.02, weights, weights) for e in range(4)]
        numbers = LayerNumbers(
            layer, layer == 2, "recorded", 0.015, 0.0, {"gate_up": 1e-6}, {"gate_up": sites}, experts
        )
        report.layers.append(numbers)
    report.histograms.codes = [1, 2, 4, 8, 16, 32, 64, 99, 120, 99, 64, 32, 16, 8, 4, 2]
    report.histograms.scales[60:64] = [3, 900, 70, 1]
    report.bytes_out, report.bytes_source = 1_500_000, 2_500_000
    return report


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return {
        "checkpoint": "tiny-W4AFP8", "against": "tiny-dsv3", "data": "evaluation.jsonl", "sequences": 32,
        "sequence": 512, "activations": "token", "kl": 0.0127, "kl_standard_error": 0.0005, "top1_agreement": 0.932,
        "source_nll": 3.033, "nll": 3.04, "source_perplexity": 20.76, "perplexity": 20.91, "perplexity_change": 0.15,
        "nll_change_standard_error": 0.002, "per_sequence": {"kl": [0.01, 0.015]}, "seconds": 30.0,
    }  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path, record: dict[str, Any]) -> Path:
    folder = tmp_path / "tiny-W4AFP8"
    (folder / "w4afp8").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}))
    (folder / "w4afp8/record.json").write_text(json.dumps(record))
    events = [
        {"event": "start"},
        {"event": "unit", "layer": 1, "seconds": 61.5},
        {"event": "unit", "layer": 2, "seconds": 9},
    ]
    (folder / "w4afp8/run.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "un')
    return folder
