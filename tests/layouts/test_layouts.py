"""Every registered layout, by common tests: random shapes and ranks there and back, refusals in words, documented."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from w4afp8 import layouts
from w4afp8.checkpoint.spec import DTYPES
from w4afp8.errors import FormatError, RecipeError
from w4afp8.layouts import _bits, _derived, _gather, _page, _words
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._scales import FarScales, search
from w4afp8.layouts._spec import FORMS, STACKS
from w4afp8.layouts._split import Sizes, Split, folder_of
from w4afp8.layouts._stack import Matrix, Stacker, make
from w4afp8.numerics.bytewise import same_bytes

GROUP = {"int4": 128, "mxfp4": 32}
HELD = [(n, f) for n in layouts.names() for f in FORMS.values() if not isinstance(layouts.get(n).holdings(f), str)]


def matrix(n: int, k: int, form: str, one_scale: bool, generator: torch.Generator) -> Matrix:
    """Random codes; scales that every layout holds: powers of two, where a layout holds no other one for each row."""
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    groups = (n, k // GROUP[form])
    if form == "mxfp4":
        return Matrix(codes, torch.randint(0, 250, groups, dtype=torch.uint8, generator=generator))
    shape = (n, 1) if one_scale else groups
    scale = 2.0 ** torch.randint(-9, -3, shape, generator=generator).float()
    return Matrix(codes, scale.expand(groups).contiguous())


def of_rows(stacker: Stacker) -> bool:
    """Whether the layout holds one scale per row and nothing for its groups."""
    return all(len(shape) == 1 for shape in stacker.holding.scales.shapes(2, 3))


def parts(stacker: Stacker, stack: str, matrices: dict[str, Matrix]) -> list[dict[str, Matrix]]:
    """What every TP rank gives back."""
    tp = stacker.split.tp
    return [stacker.load(stack, stacker.store(stack, matrices, rank), rank) for rank in range(tp)]


@given(
    held=st.sampled_from(HELD), experts=st.integers(1, 3), groups_h=st.integers(1, 9), groups_i=st.integers(1, 11),
    tp=st.integers(1, 5), ep=st.integers(1, 2), seed=st.integers(0, 2**31), holding=st.integers(0, 1),
)  # fmt: skip
def test_every_layout_gives_back_what_it_was_given(
    held: tuple[str, str], experts: int, groups_h: int, groups_i: int, tp: int, ep: int, seed: int, holding: int
) -> None:
    """Odd TP splits, sizes that no kernel's tile divides, one expert: whatever the plan does not refuse."""
    name, form = held
    layout, group = layouts.get(name), GROUP[form]
    groups_h, groups_i = (min(groups_h, 4), min(groups_i, 5)) if form == "int4" else (groups_h, groups_i)
    sizes = Sizes(experts * ep, groups_h * group, groups_i * group, group)
    split = Split(sizes, tp, ep, layout.pad)
    if split.refusals():
        assert -(-groups_i // tp) * (tp - 1) >= groups_i, "refused without need"
        return
    stacker = make(layout, form, split, min(holding, len(layout.holdings(form)) - 1))
    assert not stacker.refusals(), "the padding makes every size fit"
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        projection: matrix(*shape, form, of_rows(stacker), generator)
        for projection, shape in {
            "gate_proj": (sizes.intermediate, sizes.hidden), "up_proj": (sizes.intermediate, sizes.hidden),
            "down_proj": (sizes.hidden, sizes.intermediate),
        }.items()
    }  # fmt: skip
    for stack, projections in STACKS.items():
        try:
            whole = stacker.whole(stack, parts(stacker, stack, matrices))
        except FormatError as error:
            assert of_rows(stacker) and "one scale per row" in str(error), "padded inputs have another scale"
            assert stacker.shape(stack)[1] > split.share(tp - 1).stop - split.share(tp - 1).start
            continue
        for projection in projections:
            assert torch.equal(whole[projection].bytes_NJ, matrices[projection].bytes_NJ)
            assert torch.equal(whole[projection].scale_NG, matrices[projection].scale_NG)
        stored = stacker.store(stack, matrices, 0)
        for where, piece, spec in stacker.specs("x"):
            if where == stack:
                found = stored[piece.suffix]
                expected = list(spec.shape)
                expected[piece.order.expert_axis] = 1
                assert list(found.shape) == expected and found.dtype == DTYPES[spec.dtype]
        again = stacker.store(stack, stacker.whole(stack, parts(stacker, stack, matrices)), 0)
        assert all(torch.equal(raw(again[suffix]), raw(tensor)) for suffix, tensor in stored.items())


WITH_BIASES = [(n, f) for n, f in HELD if layouts.get(n).bias is not None]


@given(
    held=st.sampled_from(WITH_BIASES), experts=st.integers(1, 3), groups_h=st.integers(1, 9),
    groups_i=st.integers(1, 11), tp=st.integers(1, 5), empty=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_biases_are_cut_padded_and_ordered_as_the_rows(
    held: tuple[str, str], experts: int, groups_h: int, groups_i: int, tp: int, empty: bool, seed: int
) -> None:
    """What all ranks hold, put together, is what every expert had; everything else is zero, and all of an empty one."""
    (name, form), generator = held, torch.Generator().manual_seed(seed)
    layout, group = layouts.get(name), GROUP[form]
    sizes = Sizes(experts, groups_h * group, groups_i * group, group)
    split = Split(sizes, tp, 1, layout.pad)
    if split.refusals():
        return
    stacker = make(layout, form, split)
    assert layout.bias is not None
    rows = {"gate_proj": sizes.intermediate, "up_proj": sizes.intermediate, "down_proj": sizes.hidden}
    every = [
        {p: torch.zeros(n) if empty else torch.randn(n, generator=generator) for p, n in rows.items()}
        for _ in range(experts)
    ]
    for rank in range(tp):
        w13, w2 = _derived.stack_biases(stacker, every, rank)
        halves = layout.bias.load(w13, (experts, 2 * split.intermediate)).view(experts, 2, split.intermediate)
        down = layout.bias.load(w2, (experts, split.hidden))
        share = split.share(rank)
        length = share.stop - share.start
        for expert, bias in enumerate(every):
            for half, projection in zip(halves[expert], layout.w13, strict=True):
                assert torch.equal(half[:length], bias[projection][share]) and not half[length:].any()
            own = bias["down_proj"] if rank == 0 else torch.zeros(sizes.hidden)
            assert torch.equal(down[expert, : sizes.hidden], own) and not down[expert, sizes.hidden :].any()


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", layouts.names())
def test_a_layout_is_whole(name: str) -> None:
    layout = layouts.get(name)
    assert layout.name == name and layout.version >= 1 and layout.read_by
    assert sorted(layout.w13) == ["gate_proj", "up_proj"]
    for form in FORMS.values():
        holdings = layout.holdings(form)
        if isinstance(holdings, str):
            with pytest.raises(FormatError, match=f"{name} holds no {form} weights"):
                make(layout, form, Split(Sizes(1, 128, 128, GROUP[form]), 1, 1, layout.pad))
            continue
        for holding in holdings:
            assert sorted(holding.values) == list(range(16)), "a code that two codes become is lost"
    assert any(not isinstance(layout.holdings(form), str) for form in FORMS.values())


@pytest.mark.parametrize("flips", [(0, 0), (8, 8), (0, 7), (5, 2), None])
def test_codes_are_looked_up_one_by_one(flips: tuple[int, int] | None) -> None:
    """By flipped bits or by a table: each nibble becomes what the table says, in any piece, transposed or not."""
    values = tuple(code ^ flips[code >> 3] for code in range(16)) if flips else (*range(1, 16), 0)
    raw = torch.randint(0, 256, (7, _gather.BLOCK // 4 + 3), dtype=torch.uint8)
    for bytes_NJ in (raw, raw.T):
        found = ORDERS["as_it_is"].store(bytes_NJ[None], values)[0]
        table = torch.tensor(values)
        assert torch.equal(found & 15, table[(bytes_NJ & 15).long()]) and torch.equal(
            found >> 4, table[(bytes_NJ >> 4).long()]
        )
        shape = (1, *bytes_NJ.shape)
        assert torch.equal(ORDERS["as_it_is"].load(found[None], shape, values)[0], bytes_NJ)


@pytest.mark.parametrize("bits", sorted({order.bits for order in ORDERS.values()}))
def test_bits_go_where_the_table_says_and_come_back(bits: tuple[int, ...]) -> None:
    """However few operations it takes: every bit of every word, also of words that are more than one block."""
    words = torch.randint(-(1 << 31), 1 << 31, (5000,)).numpy().astype("uint32")
    expected = sum(((words >> source & 1) << target for source, target in enumerate(bits)), 0 * words)
    steps = _bits.steps(bits)
    moved = words.copy()
    _words.run(steps, moved)
    assert (moved == (expected if bits else words)).all()
    _words.run(_words.backwards(steps), moved)
    assert (moved == words).all()


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_blocks_join_without_a_seam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few elements a block holds, the stored bytes are those of one block."""
    order = ORDERS[name]
    shape = tuple(step * times for step, times in zip(order.steps(), (2, 3, 4, 2)))
    logical = torch.randint(0, 256, shape, dtype=torch.uint8)
    stored = order.store(logical)
    _gather._cuts.cache_clear()
    monkeypatch.setattr(_gather, "BLOCK", 1)
    try:
        assert torch.equal(order.store(logical), stored)
        assert torch.equal(order.load(stored, shape), logical)
    finally:
        _gather._cuts.cache_clear()


def test_bytes_are_compared_to_the_last_and_wherever_they_begin() -> None:
    raw = torch.randint(0, 256, (61,), dtype=torch.uint8)
    for begin in range(0, 17, 3):
        mine = raw[begin:]
        assert same_bytes(mine, mine.clone()) and not same_bytes(mine, raw[begin + 1 :])
        for place in range(len(mine)):
            other = mine.clone()
            other[place] ^= 1
            assert not same_bytes(mine, other)
    assert same_bytes(torch.tensor([torch.nan]), torch.tensor([torch.nan]))


def test_an_unknown_layout_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown layout 'sm91' \(did you mean 'sm90'\?\)"):
        layouts.get("sm91")


@pytest.mark.parametrize("name", [n for n, f in HELD if f == "int4" and n not in ("sm90", "vllm-cutlass")])
def test_a_scale_that_the_layout_does_not_hold_is_named(name: str) -> None:
    layout = layouts.get(name)
    stacker = make(layout, "int4", Split(Sizes(1, 256, 256, 128), 1, 1, layout.pad))
    scale = torch.full((256, 2), 0.25)
    scale[3, 1] = 0.3
    held = Matrix(torch.zeros(256, 128, dtype=torch.uint8), scale)
    with pytest.raises(FormatError, match=r"0\.3|scales 0\.25 and 0\.30"):
        stacker.check("w2", {"down_proj": held}, 0)


def test_sm90_takes_scales_that_bfloat16_does_not_hold() -> None:
    """Its second holding: float32."""
    layout = layouts.get("sm90")
    assert not isinstance(layout.int4, str)
    assert [holding.scales.pieces[0].dtype for holding in layout.int4] == ["BF16", "F32"]


def test_a_search_finds_every_product_of_its_grid() -> None:
    """Any float32 factor with any e4m3 numbers of a row is found again exactly."""
    t_NG = torch.tensor([[1.0, 1.125, 3.5, 0.0625], [15.0, 1.0, 0.5, 2.0], [0.015625, 13.0, 8.0, 0.0]])
    channel_N = torch.tensor([0.25, 2.0**-9, 3.0])
    found_NG, factor_N, error_N = search(t_NG * channel_N[:, None])
    assert not error_N.any()
    assert torch.equal(found_NG * factor_N[:, None], t_NG * channel_N[:, None])
    assert float(found_NG.max()) <= 56, "eight times it must be an e4m3 number"


def test_a_search_says_how_far_the_nearest_is() -> None:
    """Its own row in words, and what the farthest row of all would need."""
    layout = layouts.get("vllm-cutlass")
    assert not isinstance(layout.int4, str)
    encode = layout.int4[0].scales.encode
    scale_NG = torch.tensor([[0.25, 0.25], [0.25, 0.2515], [0.25, 0.26]])
    with pytest.raises(FarScales, match=r"row 1: .* nearer than 0\.\d\d% .*expected equality") as found:
        encode(scale_NG, 0.0)
    distance = found.value.distance
    assert 0.01 < distance < 0.03
    with pytest.raises(FarScales, match=r"row 2: .* expected at most"):
        encode(scale_NG, distance - 1e-6)
    table, channel_N = encode(scale_NG, distance)
    assert float((-table[..., 7].float() * channel_N[:, None] / scale_NG - 1).abs().max()) <= distance + 1e-7


def test_zero_rows_are_held_as_zeros() -> None:
    found_NG, factor_N, error_N = search(torch.zeros(2, 3))
    assert not found_NG.any() and not error_N.any() and bool(factor_N.isfinite().all())


def test_ranks_hold_what_gpt_oss_ranks_hold() -> None:
    """2880 channels in 90 groups of 32 (formats: C7)."""
    for tp, held in {1: [2880], 2: [1440] * 2, 4: [736] * 3 + [672], 8: [384] * 7 + [192]}.items():
        split = Split(Sizes(32, 2880, 2880, 32), tp, 1, 128)
        shares = [split.share(rank) for rank in range(tp)]
        assert [share.stop - share.start for share in shares] == held
        assert [share.start for share in shares[1:]] == [share.stop for share in shares[:-1]]
        assert (split.hidden, split.intermediate % 128) == (2944, 0) and not split.refusals()
    assert Split(Sizes(32, 2880, 2880, 32), 4, 1, 128).notes()[0].startswith("2880 channels in groups of 32 do not")


@pytest.mark.parametrize(
    "tp, ep, says",
    [(17, 1, "at most --tp 16"), (1, 3, "256 experts do not divide"), (12, 1, "the last rank would hold none")],
)
def test_ranks_that_cannot_be_are_refused_in_words(tp: int, ep: int, says: str) -> None:
    assert says in " ".join(Split(Sizes(256, 7168, 2048, 128), tp, ep, 128).refusals())


def test_a_rank_has_a_folder_that_sorts() -> None:
    assert [folder_of(r, 16) for r in (0, 3, 15)] == ["rank-00-of-16", "rank-03-of-16", "rank-15-of-16"]
    assert folder_of(0, 1) == ""


def test_the_page_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "layouts.md"
    assert page.read_text() == _page.page(), "write it anew: python tests/layouts/test_layouts.py"


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "layouts.md").write_text(_page.page())
