"""The CUDA kernels against float64, schedule by schedule.  Needs a Hopper GPU."""

import pytest
import torch
from kernel_problems import make, relative_error

from w4afp8.errors import KernelError
from w4afp8.kernels import ops, reference, schedules, sm90
from w4afp8.kernels.calls import GemmCall

pytestmark = pytest.mark.gpu
OPS = ops.torch.ops.w4afp8
PLAIN = [row for row in schedules.ROWS if not row.group_scale]
SCALES = {"bfloat16": [torch.bfloat16], "float32": [torch.float32], "any": [torch.bfloat16, torch.float32]}
QUEUED = 4_000_000  # cycles to sleep before two launches, so that the second is there while the first runs
GROUPED = [row for row in schedules.ROWS if row.group_scale]
COUNTS = {
    "one token": [0, 1, 0],
    "off every tile boundary": [1, 7, 0, 9, 33, 0, 130, 65],
    "one expert has all": [0, 0, 301, 0],
    "many experts": [e % 5 for e in range(300)],
    "one expert": [77],
}


def run(problem, row, out=torch.bfloat16):
    """The op on the device under one schedule, into a tensor that was NaN before and must be no NaN after."""
    cuda = {k: getattr(problem, k).cuda() for k in ("x", "x_scale", "weight", "weight_scale", "offsets")}
    weight, scale = reference.prepack(cuda["weight"], cuda["weight_scale"])
    poisoned = torch.full((len(problem.x), problem.codes.shape[1]), float("nan"), device="cuda", dtype=out)
    call = GemmCall(cuda["x"], cuda["x_scale"], weight, scale, cuda["offsets"], out, "sm90")
    found = sm90.grouped_gemm(call, row, out=poisoned)
    assert found.data_ptr() == poisoned.data_ptr()
    assert bool(found.isfinite().all()), f"{row.kernel} left values unwritten"
    return found


@pytest.mark.parametrize("row", PLAIN, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("cols", [256, 768], ids=["tiles apart", "looking ahead"])
def test_every_schedule_is_the_float64_product(row, counts, cols):
    problem = make(counts, 320, cols, scale_type=SCALES[row.weight_scales][0])
    found = run(problem, row)
    assert relative_error(found.cpu(), problem.truth()) < 2e-3
    assert torch.equal(found, run(problem, row))


@pytest.mark.parametrize("row", PLAIN, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("tokens", [1, 8, 77, 641])
@pytest.mark.parametrize("ready", [False, True], ids=["weights may be under way", "weights are ready"])
def test_every_schedule_runs_without_offsets(row, tokens, ready):
    """As `linear` calls it: planned before the kernel before has ended, whose results are then read.

    That is the quantizer, which lets the next kernel begin at once, as torch's kernels do not; x is another every time.
    """
    problem = make([tokens], 448, 768, scale_type=SCALES[row.weight_scales][0])
    weight, scale = reference.prepack(problem.weight.cuda(), problem.weight_scale.cuda())
    offsets = problem.offsets.cuda()
    for _ in range(3):
        wide = torch.randn(tokens, 768, device="cuda", dtype=torch.bfloat16)
        poisoned = [torch.full((tokens, 448), float("nan"), device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        torch.cuda._sleep(QUEUED)
        x, x_scale = sm90.quantize_fp8(wide, "token", None)
        found, again = (
            sm90.grouped_gemm(GemmCall(x, x_scale, weight, scale, bounds, torch.bfloat16, "sm90", ready), row, out=out)
            for bounds, out in zip((None, offsets), poisoned, strict=True)
        )
        assert bool(again.isfinite().all()) and torch.equal(found, again)


@pytest.mark.parametrize("row", GROUPED, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_group_scales_are_applied(row, counts):
    problem = make(counts, 192, 512, scales="group128")
    assert relative_error(run(problem, row).cpu(), problem.truth()) < 2e-3


@pytest.mark.parametrize("row", PLAIN, ids=lambda r: f"{r.kernel}-{r.split_groups}")
@pytest.mark.parametrize("out", [torch.float16, torch.float32], ids=str)
def test_types(row, out):
    for scale_type in SCALES[row.weight_scales]:
        problem = make([5, 0, 40, 131], 256, 1024, scales="tensor", scale_type=scale_type)
        found = run(problem, row, out)
        assert relative_error(found.cpu(), problem.truth()) < (3e-4 if out == torch.float32 else 8e-4)


@pytest.mark.parametrize("scale_type", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scales", ["token", "tensor", "group128"])
def test_the_choice_reads_either_type_of_weight_scales(scale_type, scales):
    problem = make([5, 0, 40, 131], 256, 384, scales=scales, scale_type=scale_type)
    weight, scale = OPS.prepack(problem.weight.cuda(), problem.weight_scale.cuda())
    args = problem.x.cuda(), problem.x_scale.cuda(), weight, scale, problem.offsets.cuda(), torch.bfloat16, "sm90"
    assert relative_error(OPS.grouped_gemm(*args).cpu(), problem.truth()) < 2e-3


def test_a_kernel_refuses_scales_that_it_does_not_read():
    with pytest.raises(RuntimeError, match="reads bfloat16 scales, found float32"):
        run(make([5], 64, 256, scale_type=torch.float32), PLAIN[0])
    with pytest.raises(RuntimeError, match="found one per token and group of 128"):
        run(make([5], 64, 256, scales="group128"), PLAIN[0])
    with pytest.raises(RuntimeError, match="found one per token or one in all"):
        run(make([5], 64, 256), GROUPED[0])


@pytest.mark.parametrize("mean", [0.0, 1.0], ids=["zero mean", "positive mean"])
def test_a_large_product_stays_exact(mean):
    for row in PLAIN:
        problem = make([24], 512, 7168, scale_type=SCALES[row.weight_scales][0])
        problem.x = (torch.randn(24, 7168) * 40 + mean * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert relative_error(run(problem, row).cpu(), problem.truth()) < 2e-3


def test_the_op_takes_int64_offsets_and_empty_batches():
    p = make([3, 0, 2], 128, 256)
    weight, scale = OPS.prepack(p.weight.cuda(), p.weight_scale.cuda())
    args = weight, scale, p.offsets.cuda().long(), torch.bfloat16, "sm90"
    found = OPS.grouped_gemm(p.x.cuda(), p.x_scale.cuda(), *args)
    assert relative_error(found.cpu(), p.truth()) < 2e-3
    empty = OPS.grouped_gemm(p.x[:0].cuda(), p.x_scale[:0].cuda(), *args)
    assert empty.shape == (0, 128)
    one = make([19], 128, 256)
    weight, scale = OPS.prepack(one.weight.cuda(), one.weight_scale.cuda())
    found = OPS.linear(one.x.cuda(), one.x_scale.cuda(), weight[0], scale[0], torch.bfloat16, "sm90")
    assert relative_error(found.cpu(), one.truth()) < 2e-3


@pytest.mark.parametrize("offsets", [[0, 9, 4, 72], [1, 9, 12, 72], [0, 9, 12, 71]], ids=str)
def test_the_debug_check_names_bad_offsets(offsets, monkeypatch):
    p = make([9, 3, 60], 256, 512)
    weight, scale = OPS.prepack(p.weight.cuda(), p.weight_scale.cuda())
    args = p.x.cuda(), p.x_scale.cuda(), weight, scale
    wrong = torch.tensor(offsets, dtype=torch.int32).cuda()
    monkeypatch.setenv("W4AFP8_CHECK", "1")
    with pytest.raises(KernelError, match="expert_offsets"):
        OPS.grouped_gemm(*args, wrong, torch.bfloat16, "sm90")
    assert relative_error(OPS.grouped_gemm(*args, p.offsets.cuda(), torch.bfloat16, "sm90").cpu(), p.truth()) < 2e-3
    monkeypatch.delenv("W4AFP8_CHECK")
    OPS.grouped_gemm(*args, wrong, torch.bfloat16, "sm90")  # clamped, never a fault
    torch.cuda.synchronize()


def test_a_captured_graph_replays_the_same_numbers():
    p = make([9, 3, 60], 256, 512)
    weight, scale = OPS.prepack(p.weight.cuda(), p.weight_scale.cuda())
    args = p.x.cuda(), p.x_scale.cuda(), weight, scale, p.offsets.cuda(), torch.bfloat16, "sm90"
    eager = OPS.grouped_gemm(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = OPS.grouped_gemm(*args)
    for _ in range(3):
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, eager)


@pytest.mark.parametrize("mode", ["token", "tensor", "group128"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 128), (7, 7168), (33, 18432), (300, 256)], ids=str)
def test_the_quantizer_equals_the_reference_byte_for_byte(mode, dtype, shape):
    x = (torch.randn(shape, device="cuda") * 3).to(dtype)
    x[0, :128] = 0
    scale = torch.tensor([0.004], device="cuda") if mode == "tensor" else None
    q, s = OPS.quantize_fp8(x, mode, scale)
    on_cpu = reference.quantize_fp8(x.cpu(), mode, scale.cpu() if scale is not None else None)
    assert torch.equal(s.cpu(), on_cpu[1])
    assert torch.equal(q.cpu().view(torch.uint8), on_cpu[0].view(torch.uint8))


class Routed:
    """A GEMM behind the launch that writes its rows and offsets."""

    def __init__(self, row, tokens, ready, experts=12, cols=1024, device="cuda"):
        made = make([1] * experts, 448, cols, scale_type=SCALES[row.weight_scales][0])
        packed = reference.prepack(made.weight.to(device), made.weight_scale.to(device))
        self.wide = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
        self.scale, by_group = (torch.rand(shape, device=device) for shape in ((tokens,), (tokens, cols // 128)))
        self.rows, offsets = (torch.zeros(n, dtype=torch.int32, device=device) for n in (tokens, experts + 1))
        x = torch.zeros((tokens, cols), dtype=torch.float8_e4m3fn, device=device)
        used = by_group if row.group_scale else self.scale
        self.call = GemmCall(x, used, *packed, offsets, torch.bfloat16, "sm90", ready)

    def route(self, ids):
        x, offsets = self.call.x, self.call.expert_offsets
        torch.ops.w4afp8_sm90.route_quantize(self.wide, None, ids, 0, x, self.scale, self.rows, offsets)

    def is_close(self, found):
        return relative_error(found.cpu(), reference.grouped_gemm(self.call).cpu().double()) < 4e-3


@pytest.mark.parametrize("ready", [False, True], ids=["weights may be under way", "weights are ready"])
@pytest.mark.parametrize("row", schedules.ROWS, ids=lambda r: f"{r.kernel}-{r.split_groups}")
def test_offsets_that_arrive_when_they_are_planned_already(row, ready):
    """The launch that writes them lets the GEMM begin at once, which finds another routing's, or nonsense."""
    tokens, experts = 6, 12
    routed = Routed(row, tokens, ready, experts)
    offsets = routed.call.expert_offsets
    stale = [0] * 6 + [6] * 7, [6] * 13, [-5, 99] * 6 + [2**31 - 1], [*range(7), *[6] * 6]
    for turn, before in enumerate(stale):
        ids = (torch.arange(tokens, dtype=torch.int32) * (turn + 3) % experts)[:, None].cuda()
        offsets.copy_(torch.tensor(before, dtype=torch.int32))
        torch.cuda.synchronize()
        torch.cuda._sleep(QUEUED)
        routed.route(ids)
        found = sm90.grouped_gemm(routed.call, row)
        torch.cuda.synchronize()
        assert offsets.tolist() != before and routed.is_close(found)
        assert torch.equal(found, sm90.grouped_gemm(routed.call, row))


@pytest.mark.parametrize("row", schedules.ROWS, ids=lambda r: f"{r.kernel}-{r.split_groups}")
def test_a_graph_whose_routing_changes(row):
    """In a graph the GEMM begins while the launch that writes the offsets runs: it finds those of the replay before."""
    tokens, experts = 40, 12
    routed = Routed(row, tokens, True, experts)
    ids = torch.zeros((tokens, 1), dtype=torch.int32, device="cuda")
    out = torch.empty((tokens, 448), dtype=torch.bfloat16, device="cuda")

    def both():
        routed.route(ids)
        sm90.grouped_gemm(routed.call, row, out=out)

    both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both()
    for turn in range(30):
        ids.copy_(torch.randint(0, 1 + turn % experts, (tokens, 1)))
        out.fill_(float("nan"))
        graph.replay()
        assert routed.is_close(out.clone()), turn
