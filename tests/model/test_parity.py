"""Our streamed forward beside transformers' DeepseekV3ForCausalLM on the same float32 weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Role
from w4afp8.model.decoder import Decoder
from w4afp8.model.weights import Weights

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32,
        "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 1.0}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "yarn": {"rope_parameters": YARN, "max_position_embeddings": 256},
    "yarn without mscale": {"rope_parameters": {k: v for k, v in YARN.items() if "mscale" not in k}},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 500.0},
    "plain query": {"q_lora_rank": None},
    "halves": {"rope_interleave": False},
    "dense only": {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    "experts only": {"first_k_dense_replace": 0},
    "one group": {"n_group": 1, "topk_group": 1},
    "one of two groups": {"topk_group": 1},
    "unnormalized": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "two shared": {"n_shared_experts": 2},
    "wide values": {"v_head_dim": 40},
    "epsilon": {"rms_norm_eps": 0.01},
    "tied": {"tie_word_embeddings": True},
    "indexer that shows every position": {
        "model_type": "deepseek_v32",
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 96,
    },
}


def open_decoder(folder: Path) -> Decoder:
    reader = CheckpointReader(folder)
    family = families.of(reader.config)
    d = family.dimensions(reader.config)
    return Decoder(family, d, Weights(reader, take_inventory(family, d, reader.specs)))


def transformers_model(decoder: Decoder, config: dict[str, Any]) -> Any:
    """transformers' model in float32 with the weights that our reader dequantizes (never its own FP8 path)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**kept)).float().eval()
    state: dict[str, Tensor] = {}
    experts: dict[int, list[str]] = {}
    for name, item in decoder.weights.inventory.items():
        layer = item.expected.layer
        if layer is not None and decoder.d.is_mtp(layer):
            continue
        if item.expected.role is Role.EXPERT and layer is not None:
            experts.setdefault(layer, []).append(name)
        else:
            state[name] = decoder.weights.matrix(name) if item.format else decoder.weights.vector(name)
    for layer in experts:
        each = [decoder.expert(layer, e) for e in range(decoder.d.experts)]
        prefix = f"model.layers.{layer}.mlp.experts."
        state[prefix + "gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        state[prefix + "down_proj"] = torch.stack([down for _, _, down in each])
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= ({"lm_head.weight"} if decoder.d.tied_head else set())
    if decoder.d.tied_head:
        model.tie_weights()
    return model


def compare(folder: Path, tokens_BS: Tensor) -> None:
    """Logits, hidden states and the set of experts of every token."""
    decoder = open_decoder(folder)
    model = transformers_model(decoder, decoder.weights._reader.config)
    routed: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        if decoder.d.is_moe(layer):
            block.mlp.experts.register_forward_hook(
                lambda module, inputs, output, layer=layer: routed.__setitem__(layer, inputs[1])
            )
    with torch.inference_mode():
        expected = model(tokens_BS).logits
        states = decoder.embed(tokens_BS)
        for layer in range(decoder.d.layers):
            routing = decoder.step(layer, states)
            assert (routing is not None) == decoder.d.is_moe(layer)
            if routing is not None:
                theirs = routed[layer].view(-1, decoder.d.experts_per_token).sort(-1).values
                assert torch.equal(routing.experts_TK.sort(-1).values, theirs), f"layer {layer} is routed differently"
        logits = torch.stack(list(decoder.logits(states)))
    assert expected.abs().max() > 0.5
    assert (logits - expected).abs().max() < 1e-5 * max(10.0, expected.abs().max().item())


def test_the_miniature_gives_transformers_logits(miniature: Path) -> None:
    compare(miniature, torch.randint(0, 2048, (2, 160)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_configuration_gives_transformers_logits(toy: Callable[..., Path], variant: str) -> None:
    changes = VARIANTS[variant]
    folder = toy(shard_gb=1.0, dtype="bf16" if variant == "halves" else "fp8", **changes)
    compare(folder, torch.randint(0, 2048, (2, 96)))


def test_published_rope_scaling_means_what_rope_parameters_mean(toy: Callable[..., Path]) -> None:
    """The published files spell YARN as rope_scaling {"type": "yarn"} beside rope_theta."""
    published = {k: v for k, v in YARN.items() if k not in ("rope_type", "rope_theta")} | {"type": "yarn"}
    new = open_decoder(toy("new", rope_parameters=YARN))
    old = open_decoder(toy("old", rope_parameters=..., rope_scaling=published, rope_theta=10000.0))
    assert old.d.rope == new.d.rope


def test_sequences_do_not_see_each_other(toy: Callable[..., Path]) -> None:
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (3, 40))
    together, alone = decoder.embed(tokens), decoder.embed(tokens[1:2])
    for layer in range(decoder.d.layers):
        decoder.step(layer, together)
        decoder.step(layer, alone)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_those_that_follow(toy: Callable[..., Path]) -> None:
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (1, 40))
    changed = tokens.clone()
    changed[0, 25:] = torch.randint(0, 2048, (15,))
    one, other = decoder.embed(tokens), decoder.embed(changed)
    for layer in range(decoder.d.layers):
        decoder.step(layer, one)
        decoder.step(layer, other)
    torch.testing.assert_close(one[0, :25], other[0, :25], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one[0, 25:], other[0, 25:])


def test_choosing_alone_routes_as_a_whole_step_does(toy: Callable[..., Path]) -> None:
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (2, 40))
    states = decoder.embed(tokens)
    decoder.step(0, states)
    only, whole = decoder.choose(1, states.clone()), decoder.step(1, states.clone())
    assert only is not None and whole is not None
    assert torch.equal(only.experts_TK, whole.experts_TK) and torch.equal(only.weights_TK, whole.weights_TK)


def test_an_mtp_layer_sees_the_next_token(toy: Callable[..., Path]) -> None:
    """Against the definition: eh_proj [norm(embedding of t + 1); norm(final norm of the main model's state at t)]."""
    decoder, tokens = open_decoder(toy()), torch.randint(0, 2048, (2, 12))
    states = torch.randn(2, 12, decoder.d.hidden)
    found = decoder.mtp_input(3, tokens, states)
    weights = decoder.weights

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + decoder.d.norm_epsilon).sqrt() * weights.vector(name)

    embedding = weights.matrix("model.embed_tokens.weight")
    follower = norm(embedding[tokens[:, 1:]], "model.layers.3.enorm.weight")
    hidden = norm(norm(states[:, :-1], "model.norm.weight"), "model.layers.3.hnorm.weight")
    expected = torch.cat((follower, hidden), -1) @ weights.matrix("model.layers.3.eh_proj.weight").T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 11, decoder.d.hidden)


def test_beyond_what_the_indexer_shows_is_refused(toy: Callable[..., Path], tmp_path: Path) -> None:
    from w4afp8 import pipeline
    from w4afp8.errors import CheckpointError, RecipeError
    from w4afp8.recipes._load import build

    folder = toy(model_type="deepseek_v32", index_n_heads=2, index_head_dim=16, index_topk=32)
    with pytest.raises(CheckpointError, match="the best 32 positions"):
        open_decoder(folder).embed(torch.zeros(1, 33, dtype=torch.long))
    recipe = build({"calibration": {"tokens": 256, "sequence": 64}}, "a test's recipe")
    with pytest.raises(RecipeError, match=r"calibration\.sequence is 64; up to 32 tokens"):
        pipeline.prepare(folder, recipe, tmp_path / "out")
