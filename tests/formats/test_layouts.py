"""Every layout: a bijection on any shape that fits, and the peer's own bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8.errors import FormatError
from w4afp8.formats._layout import ELEMENTS, Layout
from w4afp8.formats._layouts import ALL, BY_NAME
from w4afp8.numerics.axes import groups

Golden = Callable[[str], dict[str, Tensor]]


def least(layout: Layout) -> list[int]:
    """The smallest logical shape that fits, in units of the tensor."""
    sizes = [prod(layout.sizes.get(axis, 1) for axis in group) for group in groups(layout.pattern.split("->")[0])]
    return sizes if layout.unit == ELEMENTS else [*sizes[:-1], sizes[-1] * layout.unit // 8]


@given(
    layout=st.sampled_from(ALL), times=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**31), transposed=st.booleans(),
)  # fmt: skip
def test_a_layout_loses_nothing_and_invents_nothing(
    layout: Layout, times: tuple[int, int, int], seed: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [size * many for size, many in zip(least(layout), times)]
    logical = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    given_ = logical.mT.contiguous().mT if transposed else logical
    stored = layout.store(given_)
    assert stored.numel() == logical.numel()
    assert torch.equal(layout.load(stored, tuple(shape)), logical)
    assert torch.equal(layout.store(layout.load(stored, tuple(shape))), stored)


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_every_place_is_taken_once(layout: Layout) -> None:
    """A pattern names each axis on both sides, and a table each position."""
    before, after = (sorted(a for g in groups(side) for a in g) for side in layout.pattern.split("->"))
    assert before == after == sorted(set(before))
    assert set(layout.sizes) <= set(before)
    assert sorted(layout.table) == list(range(len(layout.table)))
    assert BY_NAME[layout.name] is layout and layout.read_by


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_a_shape_that_does_not_fit_is_refused_in_words(layout: Layout) -> None:
    fitting = least(layout)
    for axis, size in enumerate(fitting):
        if size > 1:
            odd = [*fitting[:axis], size + 1, *fitting[axis + 1 :]]
            with pytest.raises(FormatError, match=f"axis {axis} is {size + 1}, expected a multiple of {size}"):
                layout.store(torch.zeros(odd, dtype=torch.uint8))
            with pytest.raises(FormatError, match=layout.name):
                layout.load(torch.zeros(odd, dtype=torch.uint8), tuple(odd))
    with pytest.raises(FormatError, match=r"stores 3 axes, found \[4\]"):
        layout.store(torch.zeros(4, dtype=torch.uint8))


def agrees(name: str, logical: Tensor, peers: Tensor) -> None:
    """Our bytes are the peer's, and the peer's are read back."""
    layout = BY_NAME[name]
    stored = layout.store(logical)
    assert torch.equal(stored.reshape(-1).view(torch.uint8), peers.reshape(-1).view(torch.uint8)), name
    assert torch.equal(layout.load(peers.contiguous().view(stored.dtype), tuple(logical.shape)), logical), name


@pytest.mark.parametrize("case", ["k8", "k12", "k4", "bf16", "k2", "k3"])
def test_sglang_interleaves_scales_to_our_order(golden_tensors: Golden, case: str) -> None:
    peer = golden_tensors("sglang_cutlass_w4a8_scales")
    scale = peer[f"{case}.in"]
    name = "sglang_cutlass_scales_by_four" if scale.shape[-1] % 4 == 0 else "sglang_cutlass_scales_by_one"
    agrees(name, scale, peer[f"{case}.out"])
    assert BY_NAME[name].store(scale).shape == peer[f"{case}.out"].shape


def test_flashinfer_folds_scales_to_our_order(golden_tensors: Golden) -> None:
    peer = golden_tensors("flashinfer_sm90_scales")
    for case in ("gs32_u8", "gs32_u8_arange"):
        agrees("flashinfer_sm90_v1_scales_32", peer[f"{case}.in"], peer[f"{case}.out_v1"])
        agrees("flashinfer_sm90_v2_scales_32", peer[f"{case}.in"], peer[f"{case}.out_v2_folded"])
    for case in ("gs128_bf16", "gs128_bf16_arange"):
        agrees("flashinfer_sm90_v2_scales_128", peer[f"{case}.in"], peer[f"{case}.out_v2_folded"])
        shape = peer[f"{case}.out_v2_folded"].shape
        assert BY_NAME["flashinfer_sm90_v2_scales_128"].store(peer[f"{case}.in"]).shape == shape


@pytest.mark.parametrize("case", ["rand", "arange"])
def test_flashinfer_interleaves_weights_to_our_order(golden_tensors: Golden, case: str) -> None:
    peer = golden_tensors("flashinfer_sm90_weights")
    agrees("flashinfer_sm90_int4", peer[f"{case}.in"], peer[f"{case}.out_int4"])
    agrees("flashinfer_sm90_v1_fp4", peer[f"{case}.in"], peer[f"{case}.out_fp4_v1"])
    agrees("flashinfer_sm90_v2_fp4", peer[f"{case}.in"], peer[f"{case}.out_fp4_v2"])


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
