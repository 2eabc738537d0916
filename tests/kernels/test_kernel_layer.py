"""The one-launch layer: its choice on any machine, its numbers on a Hopper GPU."""

from dataclasses import replace

import pytest
import torch
from layer_problems import OPS, close, on_gpu, problem, run, truth

from w4afp8.errors import KernelError
from w4afp8.kernels import build, layers, schedules, sm90
from w4afp8.kernels.calls import MoECall

CASES = {  # tokens, experts, top_k, first local expert, experts routed to, hidden, inner
    "one token": (1, 8, 2, 0, 8, 256, 256),
    "one token, many experts": (1, 256, 8, 0, 256, 1024, 256),
    "another rank has some": (9, 16, 4, 4, 32, 512, 256),
    "no pair is local": (3, 4, 2, 100, 100, 256, 256),
    "more rows than a run": (70, 2, 2, 0, 2, 256, 512),
    "down rows off the tile": (33, 8, 3, 0, 8, 768, 256),
    "more tokens than blocks": (300, 300, 8, 0, 300, 256, 256),
    "long rows": (8, 4, 2, 0, 4, 2048, 1024),
    "tiles are handed out": (150, 64, 4, 0, 64, 2048, 256),
    "longer tiles are handed out": (70, 48, 4, 0, 48, 2560, 768),
    "few pairs, more rows than a run": (20, 2, 2, 0, 2, 512, 512),
    "few pairs, one of several stages a tile": (5, 3, 2, 0, 3, 512, 1280),
    "few pairs here of many": (64, 4, 4, 8, 64, 512, 512),
    "as many pairs as few are": (32, 64, 2, 0, 64, 512, 256),
    "few pairs, rows too wide for their kernel": (3, 4, 2, 0, 4, 256, 2304),
    "few pairs, rows as wide as their kernel holds": (2, 1, 1, 0, 1, 8192, 2048),
}
FEW, N8, N16 = layers.ROWS


def what_runs(tokens, experts, top_k, begin, routed, hidden, inner):
    """The kernels that can run a case."""
    asked = layers.Layer(tokens * top_k, tokens * top_k, experts, hidden, inner)
    return [row for row in layers.ROWS if not row.cannot(asked)]


RUNS = {f"{row.kernel}, {name}": (row, case) for name, case in CASES.items() for row in what_runs(*case)}


@pytest.mark.gpu
@pytest.mark.parametrize("static", [False, True], ids=["per token", "static"])
@pytest.mark.parametrize(("kernel", "case"), RUNS.values(), ids=RUNS)
def test_one_launch_is_the_reference(case, kernel, static):
    made = problem(*case)
    found = run(made, kernel, static=static)
    assert close(found, truth(made, static))
    for _ in range(3):
        assert torch.equal(found, run(made, kernel, ids=made[1].int(), static=static))


@pytest.mark.gpu
@pytest.mark.parametrize("static", [False, True], ids=["per token", "static"])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "begin", "routed"),
    [
        (1, 8, 2, 0, 8),
        (9, 16, 4, 4, 32),
        (300, 8, 3, 0, 8),
        (700, 300, 8, 0, 300),
        (1500, 8, 4, 8, 32),
    ],
)
def test_the_way_that_the_op_chooses_is_the_reference(tokens, experts, top_k, begin, routed, static):
    made = problem(tokens, experts, top_k, begin, routed, 256, 256, seed=tokens)
    arguments, named = on_gpu(made, static)
    found = OPS.fused_moe(*arguments, **named, routed_experts=routed)
    assert close(found, truth(made, static))
    arguments, named = on_gpu(made, static, ids=made[1].int())
    assert torch.equal(found, OPS.fused_moe(*arguments, **named, routed_experts=routed))


@pytest.mark.gpu
def test_calls_that_leave_other_signals_take_turns():
    """Few pairs and many, by every kernel, on one stream: each finds the scratch memory as it expects it."""
    few, many = problem(3, 8, 2, 0, 8, 512, 256), problem(70, 8, 2, 0, 8, 256, 512, seed=1)
    more = problem(30, 32, 2, 0, 32, 256, 2048, seed=2)  # few pairs, too: more and other rows, too many tiles to be few
    runs = {id(made): [r for r in layers.ROWS if r is not FEW or made is not many] for made in (few, many, more)}
    first = {}

    def check(made, kernel):
        found = run(made, kernel)
        assert torch.equal(found, first.setdefault((id(made), kernel.kernel), found))

    for turn in (few, few, many, few, more, few, many, many, more, more, few):
        for kernel in runs[id(turn)]:
            check(turn, kernel)
    # Between two launches for few pairs an even and an odd number of the others.
    for between in ((), (many,), (many, many), (many, few, many)):
        for made, kernel in [(more, FEW), *((b, N8) for b in between), (few, FEW), *((b, N16) for b in between)]:
            check(made, kernel)
    assert set(first) == {(made, kernel.kernel) for made in runs for kernel in runs[made]}
    for made in (few, many, more):
        expected = truth(made)
        assert all(close(first[id(made), kernel.kernel], expected) for kernel in runs[id(made)])


@pytest.mark.gpu
def test_the_launcher_refuses_what_the_kernel_for_few_pairs_does_not_hold():
    for tokens, hidden, inner in ((33, 256, 256), (3, 8448, 256), (3, 256, 2304)):
        made = problem(tokens, 4, 2, 0, 4, hidden, inner)
        with pytest.raises(KernelError, match=r"^n8f: does not run this layer: .*this kernel holds"):
            run(made, FEW)
        with pytest.raises(RuntimeError, match=r"few pairs: it holds 64"):  # whoever asks past the row's own check
            run(made, replace(FEW, max_pairs=4096, max_hidden=None, max_inner=None))
        assert close(run(made, N8), truth(made)), "nothing was left in the scratch memory"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [*layers.ROWS, False], ids=lambda r: r.kernel if r else "several launches")
def test_types_and_no_limit(kernel):
    for dtype, scale_type in ((torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32)):
        made = problem(5, 6, 2, 0, 6, 512, 256, dtype=dtype, scale_type=scale_type)
        assert close(run(made, kernel, limit=None), truth(made, limit=None))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [*layers.ROWS, False], ids=lambda r: r.kernel if r else "several launches")
def test_a_nan_stays_one_under_a_limit_and_in_its_token(kernel):
    made = problem(5, 6, 2, 0, 6, 512, 256)
    others, expected = [0, 1, 3, 4], truth(made, limit=0.5)
    made[0][2, 7] = float("nan")
    arguments, named = on_gpu(made, limit=0.5)
    found = sm90.fused_moe(MoECall(*arguments, **named), kernel, out=torch.zeros_like(arguments[0]))
    assert found[2].isnan().all()
    assert close(found[others], expected[others])


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", layers.ROWS, ids=lambda r: r.kernel)
def test_one_expert_has_every_token(kernel):
    x, ids, weights, packed, plain, begin = problem(64 if kernel is FEW else 150, 5, 1, 0, 5, 256, 256)
    made = (x, torch.full_like(ids, 3), weights, packed, plain, begin)
    assert close(run(made, kernel), truth(made))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", layers.ROWS, ids=lambda r: r.kernel)
def test_a_graph_replays_other_routings(kernel):
    made = problem(6, 32, 4, 0, 32, 512, 256)
    x, ids, weights = (t.cuda() for t in made[:3])
    call = MoECall(x, ids, weights, *made[3], None, None, 3.0, 1.2, 0.5, 2.5, layout="sm90")
    sm90.fused_moe(call, kernel)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [sm90.fused_moe(call, kernel) for _ in range(3)]
    for seed in range(4):
        other = problem(6, 32, 4, 0, 32, 512, 256, seed=seed)
        x.copy_(other[0])
        ids.copy_(other[1])
        weights.copy_(other[2])
        for out in captured:
            out.fill_(float("nan"))
        graph.replay()
        expected = truth((*other[:3], *made[3:]))
        assert close(captured[0], expected)
        assert all(torch.equal(captured[0], out) for out in captured[1:])


def layer(tokens, experts=256, top_k=8, hidden=7168, inner=2048, local=1.0):
    pairs = tokens * top_k
    return layers.Layer(pairs, max(1, int(pairs * local)), experts, hidden, inner)


def test_few_rows_an_expert_take_one_launch_and_many_take_several():
    assert layers.choose(layer(1)).tokens == 8
    assert layers.choose(layer(4096)) is None
    for inner in (256, 2048):
        rows = [layers.choose(layer(2**i, inner=inner)) for i in range(13)]
        sizes = [row.tokens if row else 10**6 for row in rows]
        assert sizes == sorted(sizes)


def test_a_rank_expects_its_share_of_the_pairs():
    hidden = 6144  # not measured, so the rows' bounds decide
    assert layers.choose(layer(100, experts=32, hidden=hidden, local=1 / 8)).tokens == 8
    assert layers.choose(layer(100, experts=32, hidden=hidden)) is None


def test_a_layer_that_one_launch_cannot_run_says_why():
    refusals = N16.refusals(layer(1200, experts=600, hidden=7168 + 128))
    assert [w.split()[0] for w in refusals] == ["9600", "600", "hidden", "experts"]


def test_few_pairs_have_a_kernel_of_their_own_as_far_as_it_holds():
    hidden = 6144  # not measured, so the rows' bounds decide
    assert layers.choose(layer(8, hidden=hidden)) is FEW and layers.choose(layer(9, hidden=hidden)) is N8
    assert layers.choose(layer(8, hidden=8448)) is N8 and layers.choose(layer(8, inner=2304)) is N8
    assert layers.choose(layer(9, experts=32, hidden=hidden, local=1 / 8)) is N8, "pairs of all ranks count"
    refusals = FEW.refusals(layer(9, hidden=8448, inner=2304))
    assert [(w.split()[0], w.split()[-1]) for w in refusals] == [("72", "64"), ("hidden", "8192"), ("inner", "2048")]


def test_the_limits_are_those_of_the_sources():
    source = (build.CSRC / "sm90" / "moe" / "layer" / "config.h").read_text()
    assert f"kMaxPairs = {layers.MAX_PAIRS};" in source
    assert f"kMaxExperts = {layers.MAX_EXPERTS};" in source
    assert f"kFewPairs = {layers.FEW_PAIRS};" in source
    assert f"kFewHidden = {layers.FEW_HIDDEN}, kFewInner = {layers.FEW_INNER};" in source
    gemm = (build.CSRC / "sm90" / "grouped_gemm" / "config.h").read_text()
    assert f"kMaxExperts = {schedules.MAX_EXPERTS};" in gemm
    assert f"kMaxTopK = {sm90.MAX_TOP_K};" in (build.CSRC / "sm90" / "moe" / "launch.h").read_text()
    listed = (build.CSRC / "sm90" / "moe" / "layer" / "launch.cu").read_text()
    compiled = {p.stem: p.read_text() for p in (build.CSRC / "sm90" / "moe" / "layer" / "instances").glob("*.cu")}
    assert set(compiled) == {row.kernel for row in layers.ROWS}
    for row in layers.ROWS:
        assert f"ROW({row.kernel})" in listed
        few = ", true" if row.max_pairs == layers.FEW_PAIRS else ""
        assert f"Config<{row.tokens}, 5{few}>" in compiled[row.kernel]
