"""Folding a scale out of the norm changes no function: exactly for norm and router, nearly for FP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from w4afp8 import families
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.families._inventory import take_inventory
from w4afp8.formats._spec import BlockWeight, PlainWeight
from w4afp8.model.attention import rms_norm
from w4afp8.model.decoder import Decoder
from w4afp8.model.feedforward import intermediate
from w4afp8.model.weights import Weights
from w4afp8.numerics import fp8
from w4afp8.quantize._fold import apply_fold, fold_columns, power_of_two
from w4afp8.quantize._method import Fold


def open_decoder(folder: Path) -> Decoder:
    reader = CheckpointReader(folder)
    family = families.of(reader.config)
    d = family.dimensions(reader.config)
    return Decoder(family, d, Weights(reader, take_inventory(family, d, reader.specs)))


def powers(k: int, low: int = -3, high: int = 3) -> Tensor:
    return torch.exp2(torch.randint(low, high + 1, (k,)).float())


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_a_power_of_two_fold_keeps_the_layer(toy: Callable[..., Path], dtype: str) -> None:
    decoder, prefix = open_decoder(toy(dtype=dtype)), "model.layers.1."
    scale = powers(128)
    folded = apply_fold(decoder, 1, Fold(scale, {"kept": True}))
    norm_name, gate_name = f"{prefix}post_attention_layernorm.weight", f"{prefix}mlp.gate.weight"
    assert torch.equal(folded.effective_scale if folded.effective_scale is not None else torch.empty(0), scale)
    for name, tensor in folded.tensors.items():
        source = decoder.weights._reader.specs[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (decoder.weights._reader.read(name).dtype, source.shape)

    x = torch.randn(40, 128)
    before = rms_norm(x, decoder.weights.vector(norm_name), 1e-6)
    after = rms_norm(x, folded.tensors[norm_name].float(), 1e-6)
    assert torch.equal(after * scale, before), "the norm is exact"
    router = decoder.weights.matrix(gate_name)
    assert torch.equal(folded.tensors[gate_name].float(), router * scale), "the router is exact"
    torch.testing.assert_close(after @ folded.tensors[gate_name].float().T, before @ router.T, rtol=1e-5, atol=1e-5)

    def shared(projection: str) -> tuple[Tensor, Tensor]:
        name = f"{prefix}mlp.shared_experts.{projection}.weight"
        source = decoder.weights.matrix(name)
        if dtype == "bf16":
            return source, folded.tensors[name].float()
        return source, fp8.decode_blocks(folded.tensors[name], folded.tensors[f"{name}_scale_inv"])

    (gate, new_gate), (up, new_up) = shared("gate_proj"), shared("up_proj")
    expected = intermediate(before, gate, up)
    found = intermediate(after, new_gate, new_up)
    assert (found - expected).norm() / expected.norm() < (1e-6 if dtype == "bf16" else 0.02)


def test_what_is_folded_is_what_the_stored_norm_lost(toy: Callable[..., Path]) -> None:
    """With a scale that bf16 cannot divide exactly, the consumers still get the true quotient."""
    decoder = open_decoder(toy())
    folded = apply_fold(decoder, 1, Fold(torch.full((128,), 3.0), {"kept": True}))
    name = "model.layers.1.post_attention_layernorm.weight"
    assert folded.effective_scale is not None
    assert not torch.equal(folded.effective_scale, torch.full((128,), 3.0))
    torch.testing.assert_close(folded.tensors[name].float() * folded.effective_scale, decoder.weights.vector(name))


def test_every_reader_of_the_norm_is_folded_and_nothing_else(toy: Callable[..., Path]) -> None:
    decoder = open_decoder(toy())
    folded = apply_fold(decoder, 2, Fold(torch.ones(128), {"kept": True}))
    stems = {name.removeprefix("model.layers.2.").rsplit(".weight", 1)[0] for name in folded.tensors}
    assert stems == {
        "post_attention_layernorm",
        "mlp.gate",
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
    }
    for name, tensor in folded.tensors.items():
        source = decoder.weights._reader.read(name)
        assert torch.equal(tensor.view(torch.uint8), source.view(torch.uint8)), f"{name}: a fold by 1 changes no byte"


@pytest.mark.parametrize("exponent", [-6, -1, 1, 5])
def test_one_power_of_two_for_all_columns_moves_only_block_scales(exponent: int) -> None:
    codes, scale = fp8.encode_blocks(torch.randn(200, 300))
    folded = fold_columns(BlockWeight(codes, scale), torch.full((300,), 2.0**exponent))
    assert isinstance(folded, BlockWeight)
    assert torch.equal(folded.dequantize(), fp8.decode_blocks(codes, scale) * 2.0**exponent)


def test_folding_and_unfolding_fp8_loses_only_what_falls_below_its_range() -> None:
    codes, scale = fp8.encode_blocks(torch.randn(128, 256))
    factor = powers(256, -1, 1)
    there = fold_columns(BlockWeight(codes, scale), factor)
    exact = fp8.decode_blocks(codes, scale) * factor
    difference = (there.dequantize() - exact).abs()
    assert (difference <= fp8.expand_blocks(there.scale_RC, 128, 256) * 2.0**-10).all()  # type: ignore[attr-defined]
    zero = fold_columns(BlockWeight(fp8.encode(torch.zeros(3, 5)), torch.ones(1, 1)), torch.ones(5))
    assert not zero.dequantize().any()


def test_bf16_columns_are_exact_for_powers_of_two() -> None:
    real = torch.randn(5, 40).bfloat16()
    factor = powers(40)
    assert torch.equal(fold_columns(PlainWeight(real), factor).dequantize(), real.float() * factor)


def test_powers_of_two_are_the_nearest_by_ratio() -> None:
    assert power_of_two(torch.tensor([1.0, 1.41, 1.42, 0.7, 0.72, 3.0, 2.0**-9])).tolist() == [
        1.0, 1.0, 2.0, 0.5, 1.0, 4.0, 2.0**-9,
    ]  # fmt: skip
