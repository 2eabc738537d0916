"""The evaluation: nothing lost gives nothing, something lost gives its measure, the same for one target or many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rtn_writer import edit_tensors, write_json

from w4afp8.errors import CalibrationError, CheckpointError, RecipeError
from w4afp8.evaluate import EvaluationReport, evaluate, evaluate_many

SMALL = {"sequences": 3, "sequence": 96}


@pytest.fixture(scope="module")
def three(miniature: Path, rounded: Path, text: Path) -> list[EvaluationReport]:
    """The source itself, and plain rounding with each kind of activations but one."""
    targets = [(miniature, "none"), (rounded, "token"), (rounded, "static")]
    return evaluate_many(targets, miniature, text, **SMALL)


def test_the_source_against_itself_loses_nothing(three: list[EvaluationReport]) -> None:
    itself = three[0]
    assert itself.kl < 1e-9 and itself.top1_agreement == 1.0
    assert itself.perplexity_change == 0.0 and itself.activations == "none"


def test_plain_rounding_loses_what_it_should(three: list[EvaluationReport]) -> None:
    _, token, _ = three
    assert 0.01 < token.kl < 0.1, "plain rounding stands near 0.034 on the whole text"
    assert 0.7 < token.top1_agreement < 1.0
    assert 10 < token.source_perplexity < 60, "the miniature's held-out perplexity is near 28.8"
    assert token.kl_standard_error > 0


def test_static_and_token_activations_differ(three: list[EvaluationReport]) -> None:
    assert three[1].kl != three[2].kl
    assert three[2].kl == pytest.approx(three[1].kl, rel=0.3)


def test_one_target_gives_what_many_give(
    three: list[EvaluationReport], miniature: Path, rounded: Path, text: Path
) -> None:
    alone = evaluate(rounded, miniature, text, activations="token", **SMALL)
    assert alone.kl == pytest.approx(three[1].kl, rel=1e-5)
    assert alone.nll == pytest.approx(three[1].nll, rel=1e-6)


def test_means_are_the_means_of_the_sequences(three: list[EvaluationReport]) -> None:
    report = three[1]
    assert len(report.per_sequence["kl"]) == 3
    assert sum(report.per_sequence["kl"]) / 3 == pytest.approx(report.kl, abs=1e-6)
    assert report.perplexity == pytest.approx(torch.tensor(report.nll).exp().item(), rel=1e-6)


def test_the_report_is_json_without_paths(three: list[EvaluationReport], rounded: Path) -> None:
    content = json.dumps(three[1].to_json(), allow_nan=False)
    assert str(rounded.parent) not in content
    assert json.loads(content)["checkpoint"] == "tiny-W4AFP8"


def test_a_crushed_activation_scale_shows(miniature: Path, rounded: Path, text: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(rounded, tmp_path / "bad"))
    edit_tensors(bad, "act_scales.safetensors", lambda t: [tensor.fill_(3000.0) for tensor in t.values()])
    good, crushed = evaluate_many([(rounded, "static"), (bad, "static")], miniature, text, sequences=2, sequence=64)
    assert crushed.kl > 1.5 * good.kl


def test_a_different_output_matrix_is_used(miniature: Path, rounded: Path, text: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(rounded, tmp_path / "other"))
    index = json.loads((other / "model.safetensors.index.json").read_text())
    edit_tensors(other, index["weight_map"]["lm_head.weight"], lambda t: t["lm_head.weight"].mul_(0.5))
    same, halved = evaluate_many([(rounded, "none"), (other, "none")], miniature, text, sequences=2, sequence=64)
    assert halved.kl > 2 * same.kl


def test_static_scales_that_are_not_there_are_an_error(miniature: Path, text: Path) -> None:
    with pytest.raises(CheckpointError, match="no static activation scales"):
        evaluate(miniature, miniature, text, activations="static", **SMALL)


def test_an_unknown_kind_of_activations_is_an_error(miniature: Path, text: Path) -> None:
    with pytest.raises(RecipeError, match="expected one of token, static, none"):
        evaluate(miniature, miniature, text, activations="fp4", **SMALL)


def test_too_little_text_is_an_error(miniature: Path, tmp_path: Path) -> None:
    data = tmp_path / "short.txt"
    data.write_text("a few words")
    with pytest.raises(CalibrationError, match=r"short.txt: holds \d+ tokens, 3 sequences of 96 need 288"):
        evaluate(miniature, miniature, data, **SMALL)


def test_another_models_checkpoint_is_an_error(miniature: Path, rounded: Path, text: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(miniature, tmp_path / "source"))
    for path in source.iterdir():
        path.chmod(0o644)
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", {**config, "vocab_size": 99})
    with pytest.raises(CheckpointError):
        evaluate(rounded, source, text, **SMALL)
