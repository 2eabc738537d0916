"""The layer in several launches: what stands between the two GEMMs, on a Hopper GPU."""

import pytest
import torch
from layer_problems import close, problem, run, truth

from w4afp8.kernels import build, layers, reference

pytestmark = pytest.mark.gpu

CASES = {  # tokens, experts, top_k, first local expert, experts routed to, hidden, inner
    "rows longer than a warp holds": (40, 4, 2, 0, 4, 256, 2304),
    "rows off what a warp reads at once": (70, 4, 2, 0, 4, 256, 384),
    "few tokens, sums of several pieces": (40, 4, 2, 0, 4, 2304, 256),
    "many tokens, sums of several pieces": (600, 8, 4, 0, 8, 2304, 256),
    "most choices, most experts": (40, 512, 64, 0, 512, 256, 256),
    "an eighth is here": (600, 4, 4, 8, 32, 2304, 256),
    "no pair is local": (1200, 4, 2, 100, 100, 256, 256),
}


@pytest.mark.parametrize("static", [False, True], ids=["per token", "static"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_several_launches_are_the_reference(case, static):
    made = problem(*case)
    found = run(made, False, static=static)
    assert close(found, truth(made, static))
    assert torch.equal(found, run(made, False, ids=made[1].int(), static=static))


def test_a_first_token_of_other_ranks_leaves_the_static_scale():
    made = problem(*CASES["an eighth is here"])
    made[1][0] = torch.arange(4)  # experts 8 to 11 are here
    assert close(run(made, False, static=True), truth(made, static=True))


@pytest.mark.parametrize("kernel", [*layers.ROWS, False], ids=lambda r: r.kernel if r else "several launches")
def test_gates_beyond_what_exp_holds(kernel):
    x, *rest = problem(5, 6, 2, 0, 6, 512, 256)
    made = (x * 1000, *rest)
    found, expected = run(made, kernel, limit=None), truth(made, limit=None)
    assert expected.isfinite().all() and close(found, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("tokens", "top_k", "begin", "experts", "routed"),
    [
        (2049, 1, 0, 1, 1),
        (257, 8, 0, 256, 256),
        (1000, 6, 32, 32, 256),
        (8191, 8, 0, 256, 256),
        (20000, 8, 0, 512, 512),
        (2100, 1, 7, 5, 6),
    ],
)
def test_rows_are_handed_out_by_expert_and_in_order(tokens, top_k, begin, experts, routed, dtype):
    assert build.load()
    g = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, routed, generator=g).topk(top_k)[1].to(dtype).cuda()
    ids[0, 0] = -1  # none
    x = torch.ones((tokens, 128), dtype=torch.bfloat16, device="cuda")
    q, scale = x.new_empty((ids.numel(), 128), dtype=torch.float8_e4m3fn), x.new_empty(ids.numel(), dtype=torch.float32)
    rows, offsets = (torch.full((n,), -7, dtype=torch.int32, device="cuda") for n in (ids.numel(), experts + 1))
    torch.ops.w4afp8_sm90.route_quantize(x, None, ids, begin, q, scale, rows, offsets)
    order, expected = reference.sort_by_expert(ids, begin, experts)
    assert torch.equal(offsets.long(), expected)
    by_pair = torch.full((ids.numel(),), -1, dtype=torch.int64, device="cuda")
    by_pair[order] = torch.arange(len(order), device="cuda")
    assert torch.equal(rows.long(), by_pair)
    assert torch.equal(q[: len(order)].float(), torch.full_like(q[: len(order)], 448.0, dtype=torch.float32))
