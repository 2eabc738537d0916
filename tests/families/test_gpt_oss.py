"""gpt-oss's names: the published 120b by its table, transformers' own tiny model and its own experts' outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from w4afp8 import families, formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Role
from w4afp8.families.gpt_oss import FAMILY
from w4afp8.formats import _rows
from w4afp8.formats._spec import MicroWeight
from w4afp8.synthetic import specs_of, style_of

BIG: dict[str, Any] = {
    "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 36, "num_local_experts": 128, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 64, "num_experts_per_tok": 4, "swiglu_limit": 7.0,
}  # fmt: skip
# formats A3: name below `model.layers.L.mlp.` -> dtype, shape
A3 = {
    "experts.gate_up_proj_blocks": ("U8", (128, 5760, 90, 16)), "experts.gate_up_proj_scales": ("U8", (128, 5760, 90)),
    "experts.gate_up_proj_bias": ("BF16", (128, 5760)), "experts.down_proj_blocks": ("U8", (128, 2880, 90, 16)),
    "experts.down_proj_scales": ("U8", (128, 2880, 90)), "experts.down_proj_bias": ("BF16", (128, 2880)),
    "router.weight": ("BF16", (128, 2880)), "router.bias": ("BF16", (128,)),
}  # fmt: skip


def header_specs(config: dict[str, Any]) -> dict[str, TensorSpec]:
    expected = FAMILY.expected(FAMILY.dimensions(config)).values()
    return {spec.name: spec for item in expected for spec in specs_of(item, style_of("gptoss_mxfp4"))}


def test_the_published_experts_are_the_tables() -> None:
    specs = header_specs(BIG)
    for layer in (0, 35):
        for name, (dtype, shape) in A3.items():
            found = specs[f"model.layers.{layer}.mlp.{name}"]
            assert found.shape == shape and (found.dtype == dtype or "router" in name), name
    items = take_inventory(FAMILY, FAMILY.dimensions(BIG), specs)
    assert sum(item.expected.role is Role.EXPERT for item in items.values()) == 2 * 36
    assert sum(len(item.tensors) for item in items.values()) == len(specs) == 36 * (8 + 8 + 3) + 3


def test_transformers_saves_the_names_we_expect(golden: Path) -> None:
    """But for the experts, which its bf16 model keeps transposed and without a suffix (formats: A3)."""
    saved = json.loads((golden / "transformers_names.json").read_text())["gpt_oss"]
    config = {"model_type": "gpt_oss", **saved["config_args"]}
    expected = FAMILY.expected(FAMILY.dimensions(config)).values()
    ours = {}
    for item in expected:
        shape = [item.stack, *item.shape] if item.stack else list(item.shape)
        if item.role is Role.EXPERT:
            ours[item.stem] = [shape[0], shape[2], shape[1]]
        else:
            ours[item.name] = shape
    assert ours == {name: shape for name, (_, shape) in saved["saved"].items()}


def test_an_expert_computes_what_transformers_expert_does() -> None:
    """Row order, decoding, biases, alpha and limit at once: one expert's output beside `GptOssExperts`'."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    d = FAMILY.dimensions(BIG | {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2})
    theirs = GptOssExperts(
        GptOssConfig(hidden_size=64, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1)
    ).float()
    form = formats.get("gptoss_mxfp4")

    def packed(n: int, k: int) -> MicroWeight:
        return MicroWeight(torch.randint(0, 16, (n, k)).byte(), torch.randint(124, 128, (n, k // 32)).byte())

    each = [(packed(64, 64), packed(64, 32)) for _ in range(2)]
    both_bias, down_bias = torch.randn(2, 64), torch.randn(2, 64)
    theirs.gate_up_proj.data = torch.stack([both.dequantize().T for both, _ in each])  # theirs are transposed
    theirs.down_proj.data = torch.stack([down.dequantize().T for _, down in each])
    theirs.gate_up_proj_bias.data, theirs.down_proj_bias.data = both_bias, down_bias
    x = 3 * torch.randn(5, 64)
    expected = theirs(x, torch.ones(5, 1, dtype=torch.long), torch.ones(5, 1))
    both, down = (form.unpack(form.pack(weight)) for weight in each[1])
    gate, up = (half.dequantize() for half in _rows.split(both, 2, interleaved=True))
    g, u = x @ gate.T + both_bias[1, 0::2], x @ up.T + both_bias[1, 1::2]
    swiglu = d.swiglu
    g, u = g.clamp(max=swiglu.limit), u.clamp(-swiglu.limit, swiglu.limit)
    hidden = g * torch.sigmoid(swiglu.alpha * g) * (u + swiglu.offset)
    torch.testing.assert_close(hidden @ down.dequantize().T + down_bias[1], expected, rtol=1e-5, atol=1e-4)


def test_experts_apart_are_recognized_by_their_names() -> None:
    small = BIG | {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2, "num_hidden_layers": 1}
    d = FAMILY.dimensions(small)
    assert families.arranged(FAMILY, d, header_specs(small)) is FAMILY
    apart = {s.name: s for e in FAMILY.apart(d).values() for s in specs_of(e, style_of("compressed_tensors_mxfp4"))}
    found = take_inventory(families.arranged(FAMILY, d, apart), d, apart)
    assert found["model.layers.0.mlp.experts.1.up_proj.bias"].expected.role is Role.EXPERT_BIAS
    assert found["model.layers.0.mlp.experts.1.up_proj.weight"].expected.shape == (32, 64)


def test_what_is_missing_misshapen_or_unknown_is_named() -> None:
    specs = header_specs(BIG)
    del specs["model.layers.3.mlp.experts.down_proj_bias"], specs["model.layers.4.self_attn.sinks"]
    odd = "model.layers.0.mlp.experts.gate_up_proj_bias"
    specs[odd] = TensorSpec(odd, "BF16", (128, 2880))
    specs["model.layers.0.mlp.gate.weight"] = TensorSpec("model.layers.0.mlp.gate.weight", "BF16", (3,))
    with pytest.raises(CheckpointError) as caught:
        take_inventory(FAMILY, FAMILY.dimensions(BIG), specs)
    said = str(caught.value)
    assert "model.layers.3.mlp.experts.down_proj_bias is missing" in said
    assert "model.layers.4.self_attn.sinks is missing: expected a attention of [64]" in said
    assert "(BF16 [128, 2880]): expected BF16 or F32 or F16 [128, 5760]" in said
    assert "model.layers.0.mlp.gate.weight (BF16 [3]) has no role in the family gpt_oss" in said


@pytest.mark.parametrize("field", ["num_local_experts", "hidden_size", "intermediate_size", "swiglu_limit"])
def test_a_field_that_lies_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=field):
        FAMILY.dimensions(BIG | {field: -1})
