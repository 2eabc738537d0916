"""Our MXFP4 bytes, dequantized by transformers' own public code on a CPU."""

from __future__ import annotations

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from w4afp8 import formats
from w4afp8.formats._spec import MicroWeight


def test_transformers_decodes_what_we_pack() -> None:
    """Every code under scales that bfloat16 and its float32 neighbours hold; transformers returns [E, K, N]."""
    codes = torch.randint(0, 16, (12, 96), dtype=torch.uint8)
    weight = MicroWeight(codes, torch.randint(8, 240, (12, 3), dtype=torch.uint8))
    parts = formats.get("compressed_tensors_mxfp4").pack(weight)
    blocks = parts[".weight_packed"].view(1, 12, 3, 16)
    theirs = convert_moe_packed_tensors(blocks, parts[".weight_scale"].view(1, 12, 3), dtype=torch.bfloat16)
    assert torch.equal(theirs[0].T, weight.dequantize().to(torch.bfloat16))
