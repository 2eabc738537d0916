"""Every order: a bijection on any shape that fits, and the peer's own bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8 import layouts
from w4afp8.errors import FormatError
from w4afp8.formats import _rows
from w4afp8.formats._spec import MicroWeight
from w4afp8.kernels import layout as kernel_layout
from w4afp8.layouts import _derived
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._spec import GATE_UP, UP_GATE, Holding
from w4afp8.layouts._split import Sizes, Split
from w4afp8.layouts._stack import Matrix, make
from w4afp8.numerics.axes import groups

Golden = Callable[[str], dict[str, Tensor]]


@given(
    name=st.sampled_from(sorted(ORDERS)), times=st.tuples(*[st.integers(1, 3)] * 4),
    seed=st.integers(0, 2**31), transposed=st.booleans(),
)  # fmt: skip
def test_an_order_loses_nothing_and_invents_nothing(
    name: str, times: tuple[int, ...], seed: int, transposed: bool
) -> None:
    order = ORDERS[name]
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(size * many for size, many in zip(order.steps(), times))
    if order.bits:
        shape = (*shape[:-1], shape[-1] * 2)
    logical = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    given_ = logical.mT.contiguous().mT if transposed and logical.ndim > 1 else logical
    stored = order.store(given_)
    assert stored.numel() == logical.numel()
    assert tuple(stored.shape) == order.stored_shape(shape)
    assert stored.shape[order.expert_axis] == shape[0]
    assert torch.equal(order.load(stored, shape), logical)
    assert torch.equal(order.store(order.load(stored, shape)), stored)


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_every_place_is_taken_once(name: str) -> None:
    """A pattern names each axis on both sides, and a table each bit."""
    order = ORDERS[name]
    before, after = (sorted(a for g in groups(side) for a in g) for side in order.pattern.split("->"))
    assert before == after == sorted(set(before))
    assert set(order.sizes) <= set(before)
    assert sorted(order.bits) == list(range(len(order.bits)))


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_a_shape_that_does_not_fit_is_refused_in_words(name: str) -> None:
    order = ORDERS[name]
    fitting = order.steps()
    for axis, size in enumerate(fitting):
        if size > 1:
            odd = [*fitting[:axis], size + 1, *fitting[axis + 1 :]]
            with pytest.raises(FormatError, match=f"axis {axis} is {size + 1}, expected a multiple of {size}"):
                order.store(torch.zeros(odd, dtype=torch.uint8))
            with pytest.raises(FormatError, match="expected a multiple"):
                order.load(torch.zeros(odd, dtype=torch.uint8), tuple(odd))
    with pytest.raises(FormatError, match=r"axes, found \[4, 4, 4, 4, 4\]"):
        order.store(torch.zeros([4] * 5, dtype=torch.uint8))


def agrees(name: str, logical: Tensor, peers: Tensor) -> None:
    """Our bytes are the peer's, and the peer's are read back."""
    layout = ORDERS[name]
    stored = layout.store(logical)
    assert torch.equal(stored.reshape(-1).view(torch.uint8), peers.reshape(-1).view(torch.uint8)), name
    assert torch.equal(layout.load(peers.contiguous().view(stored.dtype), tuple(logical.shape)), logical), name


@pytest.mark.parametrize("case", ["k8", "k12", "k4", "bf16", "k2", "k3"])
def test_sglang_interleaves_scales_to_our_order(golden_tensors: Golden, case: str) -> None:
    peer = golden_tensors("sglang_cutlass_w4a8_scales")
    scale = peer[f"{case}.in"]
    name = "sglang_cutlass_scales_by_four" if scale.shape[-1] % 4 == 0 else "scales_by_group"
    agrees(name, scale, peer[f"{case}.out"])
    assert ORDERS[name].store(scale).shape == peer[f"{case}.out"].shape


def test_flashinfer_folds_scales_to_our_order(golden_tensors: Golden) -> None:
    peer = golden_tensors("flashinfer_sm90_scales")
    for case in ("gs32_u8", "gs32_u8_arange"):
        agrees("flashinfer_sm90_v1_scales_32", peer[f"{case}.in"], peer[f"{case}.out_v1"])
        agrees("flashinfer_sm90_v2_scales_32", peer[f"{case}.in"], peer[f"{case}.out_v2_folded"])
    for case in ("gs128_bf16", "gs128_bf16_arange"):
        agrees("flashinfer_sm90_v2_scales_128", peer[f"{case}.in"], peer[f"{case}.out_v2_folded"])
        shape = peer[f"{case}.out_v2_folded"].shape
        assert ORDERS["flashinfer_sm90_v2_scales_128"].store(peer[f"{case}.in"]).shape == shape


@pytest.mark.parametrize("case", ["rand", "arange"])
def test_flashinfer_interleaves_weights_to_our_order(golden_tensors: Golden, case: str) -> None:
    peer = golden_tensors("flashinfer_sm90_weights")
    agrees("flashinfer_sm90_int4", peer[f"{case}.in"], peer[f"{case}.out_int4"])
    agrees("flashinfer_sm90_v1_fp4", peer[f"{case}.in"], peer[f"{case}.out_fp4_v1"])
    agrees("flashinfer_sm90_v2_fp4", peer[f"{case}.in"], peer[f"{case}.out_fp4_v2"])
    agrees("flashinfer_sm90_fp4_fp8", peer[f"{case}.in"], peer[f"{case}.out_fp4_fp8"])


def test_flashinfers_humming_path_moves_its_bytes_as_our_orders_do(golden_tensors: Golden) -> None:
    """Its codes, rewritten for FP8 activations, and its offsets; rewriting rounds codes, and no layout here does."""
    peer = golden_tensors("flashinfer_humming_mxfp4")
    agrees("flashinfer_sm90_fp4_fp8", peer["payload_before_interleave"], peer["weight_final_fp4_fp8_interleave"])
    agrees("flashinfer_sm90_v2_scales_32", peer["offset"].repeat(1, 4, 1), peer["offset_folded_v2"])


def test_marlin_holds_gpt_oss_rows_gate_first(golden_tensors: Golden) -> None:
    """SGLang takes the rows apart before it prepacks: weights, scales and biases."""
    peer = golden_tensors("sglang_gptoss_deinterleave_for_marlin")
    assert all(layouts.get(name).w13 == GATE_UP for name in ("marlin", "marlin-fp8"))
    for expert in range(2):
        stored = MicroWeight.packed(peer["in.w13_weight"][expert], peer["in.w13_scale"][expert])
        held = _rows.join(_rows.split(stored, 2, interleaved=True), interleaved=False)
        assert isinstance(held, MicroWeight)
        assert torch.equal(held.bytes_NJ, peer["out.w13_weight"][expert])
        assert torch.equal(held.exponent_NG, peer["out.w13_scale"][expert])
        bias = torch.cat(_derived.split_bias(peer["in.w13_bias"][expert], 2, interleaved=True))
        assert torch.equal(bias, peer["out.w13_bias"][expert])


def test_machete_prepacks_to_our_order(golden_tensors: Golden) -> None:
    peer = golden_tensors("machete")
    weight = peer["weight_nk_u8_low_even"][None]
    agrees("machete_16bit", weight, peer["stream_act_bf16_or_f16"])
    agrees("machete_e4m3", weight, peer["stream_act_e4m3"])
    agrees("machete_e4m3_group_scales", weight, peer["stream_act_e4m3_groupscale_16bit"])


def test_marlin_permutes_to_our_order(golden_tensors: Golden) -> None:
    peer = golden_tensors("marlin_vllm")
    weight, scale = peer["weight_nk_u8_low_even"][None], peer["scale_index_in_NG"][None]
    agrees("marlin_16bit", weight, peer["out_i32_act16"])
    agrees("marlin_8bit", weight, peer["out_i32_act8"])
    agrees("marlin_scales_16bit", scale, peer["scale_grouped_act16_out"])
    agrees("marlin_scales_8bit", scale, peer["scale_act8_out"])
    agrees("marlin_scales_8bit", peer["bias_in"][None, :, None], peer["bias_out"])
    agrees("marlin_scales_mxfp4_16bit", peer["mxfp4_e8m0_in_NG"][None], peer["mxfp4_e8m0_act16_out"])


def test_sm90_is_the_order_that_the_kernels_read() -> None:
    """Every code in every place: `kernels/layout.py` is the truth, this room's rows are the same as data."""
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(2 * 128 * 256 // 16)[torch.randperm(2 * 128 * 256)]
    codes_ENK, scale_ENG = codes.view(2, 128, 256), torch.rand(2, 128, 2)
    values = torch.tensor(holding("sm90", "int4").values, dtype=torch.uint8)
    recoded = values[(codes_ENK & 15).long()]
    stored = ORDERS["sm90"].store(recoded[..., 1::2] << 4 | recoded[..., 0::2])
    assert torch.equal(stored, kernel_layout.store_codes(codes_ENK))
    assert torch.equal(ORDERS["sm90_scales"].store(scale_ENG), kernel_layout.store_scales(scale_ENG))


def holding(name: str, form: str) -> Holding:
    found = layouts.get(name).holdings(form)
    assert not isinstance(found, str)
    return found[0]


def test_vllm_reorders_and_tabulates_to_our_bytes(golden_tensors: Golden) -> None:
    """Derived from the source, not from a run: the golden file's own note."""
    peer = golden_tensors("vllm_cutlass_w4a8_derived")
    nibbles = peer["q_int8"] & 15
    values = torch.tensor(holding("vllm-cutlass", "int4").values, dtype=torch.uint8)
    assert torch.equal(values, peer["encode_lut"])
    encoded = values[nibbles.long()]
    agrees("vllm_cutlass", (encoded[:, 1::2] << 4 | encoded[:, 0::2])[None], peer["reordered_bytes"])
    scale = peer["scale_fp8_bytes"].view(torch.float8_e4m3fn).float()
    table = (scale[..., None] * torch.arange(-8.0, 0.0)).to(torch.float8_e4m3fn)
    assert torch.equal(table.view(torch.uint8), peer["scale_lut8_fp8_bytes"])


def test_marlin_adds_six_to_the_exponents_of_fp8_activations(golden_tensors: Golden) -> None:
    peer = golden_tensors("marlin_vllm")
    scales = holding("marlin-fp8", "mxfp4").scales
    (stored,) = scales.encode(peer["mxfp4_e8m0_in_NG"], 0.0)
    assert torch.equal(scales.pieces[0].order.store(stored[None])[0], peer["mxfp4_e8m0_act_fp8_out"])
    with pytest.raises(FormatError, match=r"scale byte \[0, 1\] is 250, expected at most 249"):
        scales.encode(torch.tensor([[249, 250]], dtype=torch.uint8), 0.0)


def test_flashinfer_holds_up_before_gate_each_padded(golden_tensors: Golden) -> None:
    """SGLang's whole way for GPT-OSS: two experts of 96 x 160, w13 and w2, weights and scales."""
    peer = golden_tensors("sglang_gptoss_to_flashinfer_sm90")
    layout = layouts.get("flashinfer-sm90-v2")
    assert layout.w13 == UP_GATE and layouts.get("sm90").w13 == GATE_UP
    stacker = make(layout, "mxfp4", Split(Sizes(2, 160, 96, 32), 1, 1, layout.pad))
    for expert in range(2):
        w13, s13 = peer["in.w13_blocks_rows"][expert], peer["in.w13_scales"][expert]
        matrices = {
            "gate_proj": Matrix(w13[0::2], s13[0::2]), "up_proj": Matrix(w13[1::2], s13[1::2]),
            "down_proj": Matrix(peer["in.w2_blocks_rows"][expert], peer["in.w2_scales"][expert]),
        }  # fmt: skip
        for stack in ("w13", "w2"):
            stored = stacker.store(stack, matrices, 0)
            assert torch.equal(stored["_weight"][0], peer[f"out.{stack}_weight"][expert])
            assert torch.equal(stored["_weight_scale"][0], peer[f"out.{stack}_weight_scale"][expert])
            back = stacker.load(stack, stored, 0)
            assert all(torch.equal(back[p].bytes_NJ, matrices[p].bytes_NJ) for p in back)


def test_sglang_casts_and_interleaves_as_it_does_after_loading(golden_tensors: Golden) -> None:
    peer = golden_tensors("sglang_w4afp8_process_weights")
    stacker = make(layouts.get("sglang-cutlass"), "int4", Split(Sizes(3, 512, 256, 128), 1, 1, 128))
    for expert in range(3):
        scale = {
            "gate_proj": peer["in.w13_weight_scale_inv"][expert, :256].bfloat16().float(),
            "up_proj": peer["in.w13_weight_scale_inv"][expert, 256:].bfloat16().float(),
            "down_proj": peer["in.w2_weight_scale_inv"][expert].bfloat16().float(),
        }  # fmt: skip
        matrices = {p: Matrix(torch.zeros(len(s), 64 * s.shape[1], dtype=torch.uint8), s) for p, s in scale.items()}
        for stack in ("w13", "w2"):
            found = stacker.store(stack, matrices, 0)["_weight_scale_inv"]
            assert torch.equal(found[0], peer[f"out.{stack}_weight_scale_inv"][expert])
