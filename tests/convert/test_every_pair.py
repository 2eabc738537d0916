"""Every ordered pair of checkpoint formats, none of them named: there and back byte for byte, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from w4afp8 import conversion, formats
from w4afp8.errors import FormatError, RecipeError
from w4afp8.formats._conversion import judge
from w4afp8.formats._target import CheckpointFormat
from w4afp8.synthetic import write_checkpoint

GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_local_experts": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2,
}  # fmt: skip


def convert(source: Path, target: str, out: Path) -> None:
    conversion.run(conversion.prepare(source, target, out, 1.0))


def raw(folder: Path) -> dict[str, tuple[torch.dtype, list[int], bytes]]:
    return {
        name: (t.dtype, list(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for path in folder.glob("*.safetensors")
        for name, t in load_file(path).items()
    }


def calibrated(form: CheckpointFormat) -> bool:
    return bool(form.input_scale.names) and not form.input_scale.within


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, toy_config: dict[str, Any]) -> dict[str, Path]:
    """One in every format; those whose activation scales are files of their own come from one that has them."""
    home = tmp_path_factory.mktemp("pairs")
    small = toy_config | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0, "n_routed_experts": 2, "n_group": 1}
    small |= {"topk_group": 1}
    made = {}
    all_of_them = [formats.checkpoint(name) for name in formats.checkpoints()]
    for form in all_of_them:
        if not calibrated(form):
            made[form.name] = home / form.name
            write_checkpoint(home / form.name, GPT_OSS if form.stacked else small, dtype=form.name)
    within = next(form for form in all_of_them if form.input_scale.within)
    for form in filter(calibrated, all_of_them):
        made[form.name] = home / form.name
        convert(made[within.name], form.name, made[form.name])
    return made


def expected_refusal(source: CheckpointFormat, target: CheckpointFormat) -> str | None:
    """What must be said before a byte is written, from the formats' own data; None where it converts."""
    verdict = judge(source.name, target.name)
    if not target.written:
        return "is read, not written"
    if verdict.refusal:
        return re.escape(verdict.refusal)
    if target.stacked and not source.stacked:
        return "expect a layer's experts in one tensor"
    if target.input_scale.indexed and not source.input_scale.names:
        return "needs static activation scales"
    linear = source.linear_weight
    if all(judge(linear.name, form.name).refusal for form in target.linear_weights):
        return "would round them"
    return "already, and config.json says so" if source is target else None


@pytest.mark.parametrize("target", formats.checkpoints())
@pytest.mark.parametrize("source", formats.checkpoints())
def test_there_and_back_or_refused(source: str, target: str, sources: dict[str, Path], tmp_path: Path) -> None:
    a, b = formats.checkpoint(source), formats.checkpoint(target)
    refusal = expected_refusal(a, b)
    there = tmp_path / "there"
    if refusal:
        with pytest.raises(RecipeError, match=refusal):
            convert(sources[source], target, there)
        assert not there.exists()
        return
    try:
        convert(sources[source], target, there)
    except FormatError as error:
        assert "does not hold these numbers (exact where" in str(error)
        linears = [judge(a.linear_weight.name, form.name).conditions for form in b.linear_weights]
        assert judge(source, target).conditions or any(linears), "no condition, no such refusal"
        assert not list(there.glob("*.safetensors"))
        return
    if expected_refusal(b, a) is None or (a.stacked and not judge(target, source).refusal):
        convert(there, source, tmp_path / "back")
        assert raw(tmp_path / "back") == raw(sources[source])
        said = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", sources[source])]
        assert said[0] == said[1]


def test_most_pairs_really_convert(sources: dict[str, Path], tmp_path: Path) -> None:
    """The test above may not hide behind refusals."""
    names = formats.checkpoints()
    wanted = [(a, b) for a in names for b in names if expected_refusal(*map(formats.checkpoint, (a, b))) is None]
    assert len(wanted) >= 24
    done = 0
    for number, (a, b) in enumerate(wanted):
        try:
            convert(sources[a], b, tmp_path / str(number))
            done += 1
        except FormatError:
            continue
    assert done >= 0.7 * len(wanted)  # the rest have FP8 scales that are no powers of two
