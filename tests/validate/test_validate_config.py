"""config.json and the side files: what an engine would misread is found before it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rtn_writer import write_json

from w4afp8.validate import validate
from w4afp8.validate.config import check_config, check_side_files, target_of


def edited(folder: Path, change: Callable[[dict], object]) -> dict:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    return config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["quantization_config"].update(quant_method="fp8"), "quant_method"),
        (lambda c: c.pop("quantization_config"), "quant_method"),
        (lambda c: c["quantization_config"].update(group_size=64), "group_size"),
        (lambda c: c.update(routed_scaling_factor=1.0), "routed_scaling_factor"),
        (lambda c: c.pop("rms_norm_eps"), "rms_norm_eps"),
        (lambda c: c.update(num_nextn_predict_layers=7), "num_nextn_predict_layers"),
    ],
)
def test_a_changed_field_is_named(
    quantized: Path, miniature: Path, change: Callable[[dict], object], named: str
) -> None:
    config = edited(quantized, change)
    source = json.loads((miniature / "config.json").read_text())
    check = check_config(config, target_of(config, {}), source)
    assert named in {problem.who.split(".")[-1].split()[-1] for problem in check.problems}


def test_another_tools_directory_may_say_less_but_nothing_else(quantized: Path) -> None:
    less = edited(quantized, lambda c: [c["quantization_config"].pop(key) for key in ("group_size", "mtp_experts")])
    assert check_config(less, target_of(less, {}), None, ours=False).passed
    assert len(check_config(less, target_of(less, {}), None).problems) == 2
    other = edited(quantized, lambda c: c["quantization_config"].update(group_size=64))
    assert check_config(other, target_of(other, {}), None, ours=False).failed


def test_a_dropped_mtp_layer_is_allowed(quantized: Path, miniature: Path) -> None:
    config = edited(quantized, lambda c: c.update(num_nextn_predict_layers=0))
    del config["quantization_config"]["mtp_experts"]
    source = json.loads((miniature / "config.json").read_text())
    assert check_config(config, target_of(config, {}), source).passed


def test_side_files_are_compared_with_the_source(copy: Path, miniature: Path) -> None:
    (copy / "tokenizer_config.json").write_text("{}")
    (copy / "generation_config.json").unlink()
    (copy / "quant_cfg.json").write_text("{not json")
    write_json(copy / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})
    expected = {"quant_cfg.json": {}, "hf_quant_config.json": {"quantization": {"quant_algo": "MIXED_PRECISION"}}}
    found = {problem.who: problem.found for problem in check_side_files(copy, expected, miniature).problems}
    assert found["tokenizer_config.json"] == "other bytes"
    assert found["generation_config.json"] == "no such file"
    assert found["quant_cfg.json"].startswith("no JSON")
    assert found["hf_quant_config.json"] == "other content"
    assert len(found) == 4


def test_an_unknown_model_is_a_problem_not_a_crash(copy: Path) -> None:
    write_json(copy / "config.json", {"model_type": "other"})
    report = validate(copy)
    assert any("model_type" in str(problem) for problem in report.check("config").problems)
    assert report.check("tensors").skipped


def test_a_broken_config_is_a_problem_not_a_crash(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert not validate(copy).passed
