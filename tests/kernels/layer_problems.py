"""Random layers of routed experts, run on the GPU and by the reference."""

import torch
from kernel_problems import make, relative_error

from w4afp8.kernels import ops, sm90
from w4afp8.kernels.calls import MoECall

OPS = ops.torch.ops.w4afp8


def problem(
    tokens, experts, top_k, begin, routed, hidden, inner, seed=0, dtype=torch.bfloat16, scale_type=torch.bfloat16
):
    """Arguments of fused_moe up to the weights, canonical and prepacked."""
    gate_up = make([0] * experts, 2 * inner, hidden, scale_type=scale_type)
    down = make([0] * experts, hidden, inner, seed=1, scale_type=scale_type)
    packed = [t.cuda() for p in (gate_up, down) for t in OPS.prepack(p.weight, p.weight_scale)]
    plain = [t for p in (gate_up, down) for t in (p.weight, p.weight_scale)]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=g).to(dtype)
    weights, ids = torch.rand(tokens, routed, generator=g).topk(top_k)
    return x, ids, weights, packed, plain, begin


def options(case, static=False, limit=3.0):
    """Limit, alpha, beta and factor as a model would set them; scales of the activations that hold for all, or none."""
    scales = {"w13_input_scale": torch.tensor([0.01]), "w2_input_scale": torch.tensor([0.02])} if static else {}
    numbers = {"swiglu_limit": limit, "swiglu_alpha": 1.2, "swiglu_beta": 0.5, "routed_scaling_factor": 2.5}
    return {**scales, **numbers, "expert_begin": case[-1]}


def on_gpu(case, static=False, limit=3.0, ids=None):
    """The arguments of a call on the GPU, and what it names."""
    x, own_ids, weights, packed, *_ = case
    named = options(case, static, limit).items()
    named = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in named}
    ids = own_ids if ids is None else ids
    return (x.cuda(), ids.cuda(), weights.cuda(), *packed), {**named, "layout": "sm90"}


def run(case, kernel, ids=None, static=False, limit=3.0):
    """The layer by one kernel."""
    arguments, named = on_gpu(case, static, limit, ids)
    found = sm90.fused_moe(MoECall(*arguments, **named), kernel, out=torch.full_like(arguments[0], float("nan")))
    assert bool(found.isfinite().all()), "values left unwritten"
    return found


def truth(case, static=False, limit=3.0):
    """The reference on the CPU."""
    x, ids, weights, _, plain, _ = case
    return OPS.fused_moe(x, ids, weights, *plain, **options(case, static, limit))


def close(found, expected):
    """Equal but for values between two e4m3 steps, which may fall either way; where nothing is local, zeros."""
    if not expected.any():
        return not found.any()
    return relative_error(found.cpu(), expected.double()) < 2e-2
