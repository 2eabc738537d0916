"""The same launch again and again: a race shows as other bits.  Needs a Hopper GPU."""

import pytest
import torch
from kernel_problems import make, relative_error
from layer_problems import problem as layer_problem
from layer_problems import run as run_layer

from w4afp8.kernels import layers, reference, schedules, sm90
from w4afp8.kernels.calls import GemmCall

pytestmark = pytest.mark.gpu
PLAIN = [row for row in schedules.ROWS if not row.group_scale]
LAUNCHES = 25


@pytest.fixture(scope="module")
def short_tiles():
    """Two groups of inputs, so that no schedule cuts them and all add alike: the call by type of scales, its bits."""
    counts = [(37 * e * e + 11 * e) % 171 for e in range(48)]
    problem = make(counts, 64 * 21, 256)
    calls = {}
    for name, scale in (("bfloat16", problem.weight_scale), ("float32", problem.weight_scale.float())):
        weight, packed = reference.prepack(problem.weight.cuda(), scale.cuda())
        x, x_scale, offsets = problem.x.cuda(), problem.x_scale.cuda(), problem.offsets.cuda()
        calls[name] = GemmCall(x, x_scale, weight, packed, offsets, torch.bfloat16, "sm90")
    first = sm90.grouped_gemm(calls["bfloat16"], PLAIN[0])
    assert relative_error(first.cpu(), problem.truth()) < 2e-3
    return calls, first


@pytest.mark.parametrize("row", PLAIN, ids=lambda r: f"{r.kernel}-{r.split_groups}")
def test_all_schedules_give_the_same_bits_every_time(row, short_tiles):
    calls, first = short_tiles
    call = calls["float32" if row.weight_scales == "float32" else "bfloat16"]
    for launch in range(LAUNCHES):
        found = sm90.grouped_gemm(call, row, out=torch.full_like(first, float("nan")))
        wrong = (found != first).nonzero()
        assert not len(wrong), (
            f"launch {launch}: {len(wrong)} values differ, rows {wrong[:, 0].unique().tolist()[:8]} of x, columns "
            f"{wrong[:, 1].unique().tolist()[:8]}: {found[*wrong[0]]} for {first[*wrong[0]]}"
        )


@pytest.fixture(scope="module")
def cut_tiles():
    """Fewer tiles than blocks, of many inputs: most are cut, and the next launch finds what the last one left."""
    problem = make([1, 0, 7, 9, 33, 65, 130], 64 * 21, 2048)
    return problem, problem.truth()


@pytest.mark.parametrize("row", [row for row in schedules.ROWS if row.split_groups], ids=lambda r: r.kernel)
def test_sums_of_cut_tiles_are_the_same_every_time(row, cut_tiles):
    made, truth = cut_tiles
    scales = made.weight_scale.float() if row.weight_scales == "float32" else made.weight_scale
    weight, packed = reference.prepack(made.weight.cuda(), scales.cuda())
    x_scale = made.x_scale.cuda()
    if row.group_scale:  # the same scale for each of a token's groups
        x_scale = x_scale[:, None].repeat(1, made.x.shape[1] // 128)
    call = GemmCall(made.x.cuda(), x_scale, weight, packed, made.offsets.cuda(), torch.bfloat16, "sm90")
    first = sm90.grouped_gemm(call, row)
    assert relative_error(first.cpu(), truth) < 2e-3
    for launch in range(LAUNCHES):
        found = sm90.grouped_gemm(call, row, out=torch.full_like(first, float("nan")))
        assert torch.equal(found, first), f"launch {launch}: {int((found != first).sum())} values differ"


@pytest.mark.parametrize("kernel", layers.ROWS, ids=lambda r: r.kernel)
def test_layers_of_many_segments_give_the_same_bits_every_time(kernel):
    """Down tiles of one stage, many a block: segments are planned as fast as they are read."""
    tokens, top_k = (32, 2) if kernel.max_pairs == layers.FEW_PAIRS else (128, 4)
    made = layer_problem(tokens, 64, top_k, 0, 64, 4096, 256)
    first = run_layer(made, kernel)
    for launch in range(LAUNCHES):
        found = run_layer(made, kernel)
        assert torch.equal(found, first), f"launch {launch}: {int((found != first).sum())} values differ"
