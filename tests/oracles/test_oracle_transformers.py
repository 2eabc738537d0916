"""Our MXFP4 bytes, dequantized by transformers' own public code on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from w4afp8 import formats
from w4afp8.conversion import prepare, run
from w4afp8.formats._spec import BlockWeight, MicroWeight
from w4afp8.numerics import fp8
from w4afp8.synthetic import write_checkpoint

GPT_OSS = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2, "swiglu_limit": 7.0,
    "layer_types": ["full_attention", "sliding_attention"],
}  # fmt: skip


def test_transformers_decodes_what_we_pack() -> None:
    """Every code under scales that bfloat16 and its float32 neighbours hold; transformers returns [E, K, N]."""
    codes = torch.randint(0, 16, (12, 96), dtype=torch.uint8)
    weight = MicroWeight(codes, torch.randint(8, 240, (12, 3), dtype=torch.uint8))
    parts = formats.get("compressed_tensors_mxfp4").pack(weight)
    blocks = parts[".weight_packed"].view(1, 12, 3, 16)
    theirs = convert_moe_packed_tensors(blocks, parts[".weight_scale"].view(1, 12, 3), dtype=torch.bfloat16)
    assert torch.equal(theirs[0].T, weight.dequantize().to(torch.bfloat16))


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def test_transformers_loads_the_gpt_oss_that_convert_writes(tmp_path: Path) -> None:
    """A whole checkpoint, taken apart and put together by us, then loaded and dequantized by transformers."""
    write_checkpoint(tmp_path / "source", GPT_OSS, dtype="gptoss_mxfp4")
    run(prepare(tmp_path / "source", "compressed_tensors_mxfp4", tmp_path / "apart", 1.0))
    run(prepare(tmp_path / "apart", "gptoss_mxfp4", tmp_path / "whole", 1.0))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    theirs, apart = model.state_dict(), tensors(tmp_path / "apart")
    form = formats.get("compressed_tensors_mxfp4")
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts"
        for expert in range(3):
            own = {
                projection: form.unpack(
                    {part.suffix: apart[f"{stem}.{expert}.{projection}{part.suffix}"] for part in form.parts}
                ).dequantize()
                for projection in ("gate_proj", "up_proj", "down_proj")
            }
            both = theirs[f"{stem}.gate_up_proj"][expert].T.float()
            assert torch.equal(both[0::2], own["gate_proj"]) and torch.equal(both[1::2], own["up_proj"])
            assert torch.equal(theirs[f"{stem}.down_proj"][expert].T.float(), own["down_proj"])
            bias = theirs[f"{stem}.gate_up_proj_bias"][expert]
            assert torch.equal(bias[1::2], apart[f"{stem}.{expert}.up_proj.bias"])


@pytest.mark.parametrize("name", ["deepseek_mxfp4", "deepseek_ue8m0", "deepseek_fp8"])
def test_transformers_dequantizes_our_deepseek_bytes(name: str) -> None:
    form = formats.get(name)
    if form.form is MicroWeight:
        codes = torch.randint(0, 16, (128, 256), dtype=torch.uint8)
        parts = form.pack(MicroWeight(codes, torch.randint(100, 150, (128, 8), dtype=torch.uint8)))
    else:
        scale = torch.exp2(torch.randint(-9, 9, (1, 2)).float())
        parts = form.pack(BlockWeight(fp8.encode(torch.randn(128, 256)), scale))
    weight, scale = parts.values()
    theirs = Fp8Dequantize._dequantize_one(Fp8Dequantize(None), weight, scale)
    assert torch.equal(theirs.float(), form.unpack(parts).dequantize())
