"""Shapes come from a config, ranks from a division that must come out even."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w4afp8.errors import CheckpointError, RecipeError
from w4afp8.measure import shapes
from w4afp8.measure.shapes import NAMED, Gemm, gather, named, of_config, of_model, split

# DeepSeek-R1's published config.json, the fields that shape anything.
R1 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "rope_theta": 10000, "max_position_embeddings": 163840,
}  # fmt: skip


def sizes(gemms: tuple[Gemm, ...]) -> list[tuple[int, int, int]]:
    return [(g.rows, g.cols, g.experts) for g in gemms]


def test_r1s_config_gives_the_named_shapes() -> None:
    found = of_config(R1, "R1")
    assert found.layer == NAMED["R1"].layer
    assert sizes(found.dense) == sizes(NAMED["DENSE"].dense)
    assert [g.name.rpartition(".")[2] for g in found.dense] == [g.name.rpartition(".")[2] for g in NAMED["DENSE"].dense]


def test_ranks_of_r1_are_the_named_ranks() -> None:
    for by, name in (((1, 8), "EP8"), ((8, 1), "TP8")):
        rank, expected = split(named("R1"), *by).layer, NAMED[name].layer
        assert rank and expected and sizes(rank.gemms) == sizes(expected.gemms)
        assert (rank.routed, rank.top_k) == (expected.routed, expected.top_k) == (256, 8)


def test_tensor_parallelism_cuts_each_projection_on_its_own_side() -> None:
    found = split(of_config(R1, "R1"), 8, 1)
    assert sizes(found.dense) == [
        (3072, 1536, 1), (4096, 512, 1), (7168, 2048, 1), (4608, 7168, 1), (7168, 2304, 1),
    ]  # fmt: skip
    assert found.name == "R1/tp8" and found.dense[2].name == "R1/tp8.o"


def test_everything_that_does_not_divide_is_said_at_once() -> None:
    with pytest.raises(RecipeError) as refused:
        split(of_config(R1, "R1"), 32, 7)
    text = str(refused.value)
    assert "intermediate size is 64 on a rank, no multiple of 128" in text
    assert "the number of experts is 256, no multiple of 7" in text
    assert "dense_down: K is 576 on a rank" in text and "kv_b" not in text


def test_a_model_is_a_directory_or_its_config(tmp_path: Path) -> None:
    (tmp_path / "R1").mkdir()
    (tmp_path / "R1" / "config.json").write_text(json.dumps(R1))
    assert of_model(tmp_path / "R1") == of_model(tmp_path / "R1" / "config.json") == of_config(R1, "R1")
    with pytest.raises(RecipeError, match=r"found no config.json there"):
        of_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(CheckpointError, match="mamba"):
        of_model(tmp_path)


def test_a_name_is_known_or_nearly() -> None:
    assert named("oss") is NAMED["OSS"]
    with pytest.raises(RecipeError, match="did you mean 'TP8'"):
        named("tp9")
    with pytest.raises(RecipeError, match="give --model CONFIG or --shape"):
        gather((), None, 1, 1)


@pytest.mark.parametrize("text", ["", "1,,2", "0", "-4", "many"])
def test_token_counts_are_positive(text: str) -> None:
    with pytest.raises(RecipeError, match="--tokens"):
        shapes.parse_tokens(text)


def test_a_model_without_query_rank_or_dense_layers(miniature_config: dict[str, Any]) -> None:
    d: dict[str, Any] = miniature_config | {"q_lora_rank": None, "first_k_dense_replace": 0}
    assert [g.name for g in of_config(d, "m").dense] == ["m.q", "m.kv_b", "m.o"]


def test_a_family_without_dense_projections_has_its_experts() -> None:
    config = {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "tie_word_embeddings": False,
    }  # fmt: skip
    found = of_config(config, "gpt-oss-20b")
    assert sizes(found.gemms) == [(5760, 2880, 32), (2880, 2880, 32)]
    with pytest.raises(RecipeError, match="the hidden size is 2880 on a rank, no multiple of 128"):
        split(found, 1, 1)
