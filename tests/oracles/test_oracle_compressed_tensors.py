"""Our bytes, read and written by compressed-tensors' own public code (pip install w4afp8[oracles])."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w4afp8 import formats
from w4afp8.formats._spec import FineWeight, GroupWeight, MicroWeight
from w4afp8.numerics import fp4, int4

pytest.importorskip("compressed_tensors", reason="pip install -e '.[oracles]'")
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import match_name

FINE = formats.get("compressed_tensors_int4")
INT4, MX = formats.get("compressed_tensors_w4a8"), formats.get("compressed_tensors_mxfp4")


@given(n=st.integers(1, 9), groups=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_its_int4_words_are_ours_both_ways(n: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (n, 128 * groups), generator=generator).to(torch.int8)
    parts = INT4.pack(GroupWeight(codes, torch.ones(n, groups)))
    assert torch.equal(parts[".weight_packed"], pack_to_int32(codes, 4))
    shape = torch.Size(parts[".weight_shape"].tolist())
    assert torch.equal(unpack_from_int32(parts[".weight_packed"], 4, shape), codes)


@given(n=st.integers(1, 9), groups=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_its_fp4_bytes_are_ours_both_ways(n: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n, 32 * groups), generator=generator).to(torch.uint8)
    packed = MX.pack(MicroWeight(codes, torch.full((n, groups), 127, dtype=torch.uint8)))[".weight_packed"]
    assert torch.equal(pack_fp4_to_uint8(fp4.decode(codes)), packed)
    read = unpack_fp4_from_uint8(packed, n, 32 * groups, dtype=torch.float32)
    assert torch.equal(read, fp4.decode(codes))


def test_it_understands_the_config_that_convert_writes() -> None:
    """Every group is a scheme that it knows, and each module falls to the group that its bytes are in."""
    written = formats.checkpoint("compressed_tensors_w4a8").quantization_config({})
    config = QuantizationConfig.model_validate(written)
    assert config.format == "mixed-precision"
    experts, rest = config.config_groups["group_0"], config.config_groups["group_1"]
    assert (experts.format, experts.weights.num_bits, experts.weights.group_size) == ("pack-quantized", 4, 128)
    assert (rest.format, rest.weights.block_structure) == ("float-quantized", [128, 128])
    expert = "model.layers.3.mlp.experts.7.up_proj"
    assert not any(match_name(expert, target) for target in (*rest.targets, *config.ignore))
    for other in (
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.q_b_proj",
        "mlp.gate_proj",
        "mlp.shared_experts.down_proj",
    ):
        name = f"model.layers.3.{other}"
        assert any(match_name(name, target) for target in rest.targets), other
        assert not any(match_name(name, target) for target in config.ignore), other
    assert any(match_name("model.layers.3.mlp.gate", target) for target in config.ignore)


@given(n=st.integers(1, 9), groups=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_its_words_in_groups_of_32_are_ours_both_ways(n: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (n, 32 * groups), generator=generator).to(torch.int8)
    low_even = int4.pack_low_first(codes).view(torch.uint8)
    parts = FINE.pack(FineWeight(low_even, torch.ones(n, groups)))
    assert torch.equal(parts[".weight_packed"], pack_to_int32(codes, 4))
    assert torch.equal(FINE.unpack(parts).dequantize(), codes.float())


@pytest.mark.parametrize("name", ["compressed_tensors_w4a8", "compressed_tensors_mxfp4"])
@pytest.mark.parametrize("plain", [True, False])
def test_it_understands_every_config_that_we_write(name: str, plain: bool) -> None:
    """Experts fall to the first group, linears to the second or to none, in every family's names."""
    config = QuantizationConfig.model_validate(formats.checkpoint(name).config_for({}, plain))
    experts = config.config_groups["group_0"]
    assert config.format == (experts.format if plain else "mixed-precision")
    assert experts.weights.type == ("float" if "mxfp4" in name else "int") and experts.weights.num_bits == 4
    assert experts.weights.group_size == (32 if "mxfp4" in name else 128)
    assert (experts.input_activations is not None) == ("w4a8" in name)
    linears = [
        "model.layers.3.self_attn.indexer.wq_b", "model.layers.3.self_attn.o_proj", "layers.9.attn.wo_a",
        "mtp.0.attn.indexer.wq_b", "layers.2.ffn.shared_experts.w2", "mtp.0.e_proj",
    ]  # fmt: skip
    sixteen = [
        "model.layers.3.self_attn.indexer.weights_proj", "layers.9.attn.compressor.wkv", "head", "mtp.0.head",
        "layers.2.ffn.gate", "model.layers.0.mlp.router",
    ]  # fmt: skip
    for expert in ("model.layers.3.mlp.experts.7.up_proj", "layers.9.ffn.experts.2.w1", "mtp.0.ffn.experts.0.w3"):
        assert not any(match_name(expert, target) for target in config.ignore), expert
    for linear in linears:
        group = config.config_groups.get("group_1")
        assert any(match_name(linear, target) for target in (config.ignore if group is None else group.targets)), linear
    for name in sixteen:
        assert any(match_name(name, target) for target in config.ignore), name
