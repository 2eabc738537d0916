"""The ops on a CPU, against float64 and against what they refuse."""

import pytest
import torch
from kernel_problems import Problem, make, relative_error

from w4afp8.errors import KernelError
from w4afp8.kernels import calls, ops, reference, sm90

OPS = torch.ops.w4afp8
BF16 = torch.bfloat16


@pytest.fixture
def problem() -> Problem:
    return make([3, 0, 17, 1], 192, 256)


@pytest.mark.parametrize("scales", ["token", "tensor", "group128"])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.float32])
def test_grouped_gemm_is_the_float64_product(scales, out):
    p = make([3, 0, 17, 1], 192, 256, scales=scales)
    found = OPS.grouped_gemm(p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, out)
    assert found.dtype == out
    assert relative_error(found, p.truth()) < (1e-6 if out == torch.float32 else 2e-3)


def test_float32_scales_are_used_in_full():
    p = make([5, 4], 64, 384, scale_type=torch.float32)
    found = OPS.grouped_gemm(p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, torch.float32)
    assert relative_error(found, p.truth()) < 1e-6


def test_a_slice_of_a_large_expert_is_the_same_as_the_whole(monkeypatch):
    p = make([2, 3], 256, 128)
    whole = OPS.grouped_gemm(p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, torch.float32)
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 64)
    sliced = OPS.grouped_gemm(p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, torch.float32)
    assert torch.allclose(whole, sliced, rtol=1e-5)


def test_both_layouts_give_the_same_numbers(problem):
    packed, scale = OPS.prepack(problem.weight, problem.weight_scale)
    args = problem.x, problem.x_scale
    a = OPS.grouped_gemm(*args, problem.weight, problem.weight_scale, problem.offsets, torch.float32)
    b = OPS.grouped_gemm(*args, packed, scale, problem.offsets, torch.float32, "sm90")
    assert torch.equal(a, b)


def test_prepack_returns_what_unprepack_takes(problem):
    weight, scale = OPS.unprepack(*OPS.prepack(problem.weight, problem.weight_scale))
    assert torch.equal(weight, problem.weight)
    assert torch.equal(scale, problem.weight_scale)


def test_every_canonical_byte_unpacks_low_nibble_first():
    raw = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    low, high = reference.unpack_codes(raw).reshape(-1, 2).T
    signed = lambda n: n - 16 if n > 7 else n  # noqa: E731
    assert low.tolist() == [signed(b & 15) for b in range(256)]
    assert high.tolist() == [signed(b >> 4) for b in range(256)]


def test_linear_is_a_grouped_gemm_of_one(problem):
    one = make([9], 192, 256, seed=3)
    found = OPS.linear(one.x, one.x_scale, one.weight[0], one.weight_scale[0], torch.float32)
    assert relative_error(found, one.truth()) < 1e-6
    weight = one.weight[0], one.weight_scale[0]
    for ready in (False, True):
        assert calls.LinearCall(one.x, one.x_scale, *weight, BF16, weights_ready=ready).grouped().weights_ready is ready


def test_no_tokens_is_no_rows():
    p = make([0, 0], 64, 128)
    assert OPS.grouped_gemm(p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, BF16).shape == (0, 64)


@pytest.mark.parametrize("mode", ["token", "tensor", "group128"])
def test_quantize_fp8_loses_at_most_half_a_step(mode):
    x = torch.randn(7, 256, generator=torch.Generator().manual_seed(1))
    q, scale = OPS.quantize_fp8(x, mode)
    wide = scale.repeat_interleave(128, 1) if mode == "group128" else scale.reshape(-1, 1)
    back = q.float() * wide
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2**-4, wide * 2**-10) * 1.001).all()


@pytest.mark.parametrize("mode", ["token", "tensor", "group128"])
def test_no_tokens_quantize_to_no_tokens(mode):
    q, scale = OPS.quantize_fp8(torch.empty(0, 256), mode)
    assert q.shape == (0, 256) and scale.shape[0] == (1 if mode == "tensor" else 0)


def test_quantize_fp8_clamps_and_keeps_zero_rows():
    x = torch.tensor([[1e4, -1e4], [0.0, 0.0]])
    q, scale = OPS.quantize_fp8(x, "tensor", torch.ones(1))
    assert q.float().tolist() == [[448.0, -448.0], [0.0, 0.0]]
    q, scale = OPS.quantize_fp8(torch.zeros(2, 128), "token")
    assert q.float().abs().sum() == 0 and (scale > 0).all()


def moe(limit: float | None = None, seed: int = 0, top_k: int = 2, experts: int = 4, tokens: int = 9):
    gate_up, down = make([0] * experts, 256, 128, seed=seed), make([0] * experts, 128, 128, seed=seed + 1)
    g = torch.Generator().manual_seed(seed + 2)
    x = torch.randn(tokens, 128, generator=g, dtype=BF16)
    weights, ids = torch.rand(tokens, experts, generator=g).topk(top_k)
    return x, ids.int(), weights, gate_up, down


def moe_truth(x, ids, weights, gate_up: Problem, down: Problem, *, limit=None, alpha=1.0, beta=0.0, factor=1.0):
    w13 = gate_up.codes.double() * gate_up.weight_scale.double().repeat_interleave(128, -1)
    w2 = down.codes.double() * down.weight_scale.double().repeat_interleave(128, -1)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for e, weight in zip(ids[t].tolist(), weights[t].tolist()):
            gate, up = (x[t].double() @ w13[e].T).chunk(2)
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            out[t] += weight * ((gate * torch.sigmoid(alpha * gate) * (up + beta)) @ w2[e].T)
    return out * factor


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 0.5},
        {"limit": 0.3, "alpha": 1.702, "beta": 1.0},
        {"factor": 2.5},
    ],
    ids=str,
)
def test_fused_moe_is_the_layer(options):
    x, ids, weights, gate_up, down = moe()
    found = OPS.fused_moe(
        x,
        ids,
        weights,
        gate_up.weight,
        gate_up.weight_scale,
        down.weight,
        down.weight_scale,
        swiglu_limit=options.get("limit"),
        swiglu_alpha=options.get("alpha", 1.0),
        swiglu_beta=options.get("beta", 0.0),
        routed_scaling_factor=options.get("factor", 1.0),
    )
    truth = moe_truth(x, ids, weights, gate_up, down, **options)
    assert relative_error(found, truth) < 0.06  # two roundings of activations to e4m3


def test_two_ranks_add_up_to_the_whole_layer():
    x, ids, weights, gate_up, down = moe(experts=4)
    args = gate_up.weight, gate_up.weight_scale, down.weight, down.weight_scale
    whole = OPS.fused_moe(x, ids, weights, *args).float()
    halves = [
        OPS.fused_moe(x, ids, weights, *(a[s].contiguous() for a in args), expert_begin=s.start).float()
        for s in (slice(0, 2), slice(2, 4))
    ]
    assert relative_error(sum(halves), whole.double()) < 5e-3


def test_an_id_of_minus_one_adds_nothing():
    x, ids, weights, gate_up, down = moe()
    args = gate_up.weight, gate_up.weight_scale, down.weight, down.weight_scale
    ids[:, 1] = -1
    one = OPS.fused_moe(x, ids, weights, *args)
    assert torch.equal(one, OPS.fused_moe(x, ids[:, :1].contiguous(), weights[:, :1].contiguous(), *args))


def test_static_scales_are_used():
    x, ids, weights, gate_up, down = moe()
    args = gate_up.weight, gate_up.weight_scale, down.weight, down.weight_scale
    found = OPS.fused_moe(x, ids, weights, *args, torch.tensor([0.01]), torch.tensor([0.01]))
    assert relative_error(found, moe_truth(x, ids, weights, gate_up, down)) < 0.06
    tiny = OPS.fused_moe(x, ids, weights, *args, torch.tensor([1e-5]), torch.tensor([0.01]))
    assert relative_error(tiny, moe_truth(x, ids, weights, gate_up, down)) > 0.5


def bad(problem, **change):
    good = {
        "x": problem.x,
        "x_scale": problem.x_scale,
        "weight": problem.weight,
        "weight_scale": problem.weight_scale,
        "expert_offsets": problem.offsets,
        "out_dtype": BF16,
        "layout": "canonical",
    }
    return good | change


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x", lambda p: p.x.float()),
        ("x", lambda p: p.x[:, :128].contiguous()),
        ("x", lambda p: p.x.repeat(1, 2)[:, ::2]),
        ("x_scale", lambda p: p.x_scale.double()),
        ("x_scale", lambda p: p.x_scale[:2].contiguous()),
        ("weight", lambda p: p.weight.short()),
        ("weight", lambda p: p.weight[:, :, :96].contiguous()),
        ("weight_scale", lambda p: p.weight_scale.half()),
        ("weight_scale", lambda p: p.weight_scale[:, :64].contiguous()),
        ("expert_offsets", lambda p: p.offsets[:-1].contiguous()),
        ("expert_offsets", lambda p: p.offsets.float()),
        ("expert_offsets", lambda p: p.offsets + 1),
        ("expert_offsets", lambda p: torch.tensor([0, 9, 3, 20, 21])),
        ("out_dtype", lambda p: torch.float64),
        ("layout", lambda p: "machete"),
    ],
)
def test_a_bad_argument_is_named(problem, argument, value):
    with pytest.raises(KernelError, match=argument):
        OPS.grouped_gemm(**bad(problem, **{argument: value(problem)}))


def test_prepack_refuses_rows_that_fill_no_tile():
    p = make([1], 96, 128)
    with pytest.raises(KernelError, match="N=96"):
        OPS.prepack(p.weight, p.weight_scale)


def test_a_static_scale_belongs_to_mode_tensor():
    with pytest.raises(KernelError, match="scale"):
        OPS.quantize_fp8(torch.randn(2, 128), "token", torch.ones(1))


@pytest.mark.parametrize("kind", [calls.GemmCall, calls.LinearCall, calls.MoECall], ids=lambda k: k.__name__)
def test_a_call_has_the_fields_of_its_schema(kind):
    name = {"GemmCall": "grouped_gemm", "LinearCall": "linear", "MoECall": "fused_moe"}[kind.__name__]
    arguments = getattr(OPS, name).default._schema.arguments
    assert kind._fields == tuple(argument.name for argument in arguments)
    assert kind._field_defaults == {a.name: a.default_value for a in arguments if a.has_default_value()}


@pytest.fixture
def on_hopper(monkeypatch):
    """Calls take the GPU's road as far as its kernel; the plain twin stands in for that."""
    ran = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(sm90, "serves", lambda x, layout: layout == "sm90")
    monkeypatch.setattr(sm90, "grouped_gemm", lambda call: ran.append(call) or call.x_scale.new_zeros(len(call.x), 1))
    return ran


@pytest.mark.parametrize("offsets", [[0, 9, 3, 20, 21], [1, 3, 3, 20, 21], [0, 3, 3, 20, 20]], ids=str)
def test_the_debug_check_names_bad_offsets_before_a_kernel_runs(problem, on_hopper, monkeypatch, offsets):
    packed = OPS.prepack(problem.weight, problem.weight_scale)
    args = problem.x, problem.x_scale, *packed, torch.tensor(offsets), BF16, "sm90"
    OPS.grouped_gemm(*args)
    assert len(on_hopper) == 1, "unasked, nothing waits for the device"
    monkeypatch.setenv("W4AFP8_CHECK", "1")
    with pytest.raises(KernelError, match="expert_offsets"):
        OPS.grouped_gemm(*args)
    assert len(on_hopper) == 1
    OPS.grouped_gemm(*args[:4], problem.offsets, BF16, "sm90")
    assert len(on_hopper) == 2
    monkeypatch.setenv("W4AFP8_CHECK", "yes")
    with pytest.raises(KernelError, match="W4AFP8_CHECK: found 'yes'"):
        OPS.grouped_gemm(*args)


@pytest.mark.parametrize("name", [schema.partition("(")[0] for schema, *_ in ops.SCHEMAS])
def test_every_op_passes_opcheck(name):
    p = make([3, 2], 64, 128)
    x, ids, weights, gate_up, down = moe()
    packed = OPS.prepack(p.weight, p.weight_scale)
    args = {
        "quantize_fp8": (torch.randn(3, 128), "token"),
        "prepack": (p.weight, p.weight_scale),
        "unprepack": packed,
        "grouped_gemm": (p.x, p.x_scale, p.weight, p.weight_scale, p.offsets, BF16),
        "linear": (p.x, p.x_scale, p.weight[0], p.weight_scale[0], BF16),
        "fused_moe": (x, ids, weights, gate_up.weight, gate_up.weight_scale, down.weight, down.weight_scale),
    }[name]
    fp8_in = name in ("grouped_gemm", "linear")  # which test_schema cannot compare
    tests = ("test_faketensor",) if fp8_in else ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(OPS, name).default, args, test_utils=tests)


def test_torch_compile_keeps_the_op_whole(problem):
    def layer(x, scale):
        return OPS.grouped_gemm(x, scale, problem.weight, problem.weight_scale, problem.offsets, BF16) * 2

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(problem.x, problem.x_scale), layer(problem.x, problem.x_scale))
