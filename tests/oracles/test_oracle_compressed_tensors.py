"""Our bytes, read and written by compressed-tensors' own public code (pip install w4afp8[oracles])."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w4afp8 import formats
from w4afp8.formats._spec import GroupWeight, MicroWeight
from w4afp8.numerics import fp4

pytest.importorskip("compressed_tensors", reason="pip install -e '.[oracles]'")
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

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
