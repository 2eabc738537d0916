"""Many short tiles of every size, again and again: a race shows as other bits.  Needs a Hopper GPU."""

import pytest
import torch
from kernel_problems import make, relative_error

from w4afp8.kernels import reference, schedules, sm90
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
