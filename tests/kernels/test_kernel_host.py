"""What stands between an op and the compiled kernels, on any machine: a library that only writes down its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_problems import make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w4afp8.errors import KernelError
from w4afp8.kernels import build, layers, ops, sm90
from w4afp8.kernels.calls import GemmCall, LinearCall, MoECall

OPS = ops.torch.ops.w4afp8
NAMES = ("quantize", "grouped_gemm", "route_quantize", "swiglu_quantize", "combine", "fused_layer")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.device | None]]:
    """(kernel, current device) of every launch; the tensors stay on the CPU."""
    seen: list[tuple[str, torch.device | None]] = []
    here: list[torch.device | None] = [None]

    @contextmanager
    def device(there: torch.device) -> Iterator[None]:
        before, here[0] = here[0], there
        yield
        here[0] = before

    def launch(name: str) -> Callable[..., None]:
        return lambda *arguments: seen.append((name, here[0]))

    monkeypatch.setattr(build, "load", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "a Hopper")
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.ops, "w4afp8_sm90", SimpleNamespace(**{name: launch(name) for name in NAMES}))
    return seen


def layer(top_k: int = 2, tokens: int = 3, hidden: int = 256, inner: int = 256, experts: int = 4) -> MoECall:
    """A few experts, prepacked."""
    w13, w2 = make([0] * experts, 2 * inner, hidden), make([0] * experts, hidden, inner)
    packed = [t for p in (w13, w2) for t in OPS.prepack(p.weight, p.weight_scale)]
    ids = torch.zeros(tokens, top_k, dtype=torch.int32)
    x = torch.zeros(tokens, hidden, dtype=torch.bfloat16)
    return MoECall(x, ids, torch.ones(tokens, top_k), *packed, layout="sm90")


def gemm() -> GemmCall:
    p = make([2, 1], 64, 256)
    packed = OPS.prepack(p.weight, p.weight_scale)
    return GemmCall(p.x, p.x_scale, *packed, p.offsets, torch.bfloat16, "sm90")


def off_by_one(x: Tensor) -> Tensor:
    """The same values at an address that is no multiple of 16."""
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    return moved.copy_(x) if x.dtype != torch.float8_e4m3fn else moved


@pytest.mark.parametrize(
    "run",
    [
        lambda: sm90.quantize_fp8(layer().x, "token", None),
        lambda: sm90.grouped_gemm(gemm()),
        lambda: sm90.fused_moe(layer(), True),
        lambda: sm90.fused_moe(layer(), False),
    ],
    ids=["quantize", "gemm", "one launch", "several launches"],
)
def test_kernels_are_launched_on_the_device_of_their_tensors(run: Callable[[], Any], calls: list[Any]) -> None:
    """Another GPU may be the current one: launched there, a kernel would read addresses that are not its own."""
    run()
    assert calls and {where for _, where in calls} == {torch.device("cpu")}


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda: sm90.quantize_fp8(off_by_one(layer().x), "token", None), "x"),
        (lambda: sm90.grouped_gemm(gemm()._replace(x=off_by_one(gemm().x))), "x"),
        (lambda: sm90.fused_moe((c := layer())._replace(x=off_by_one(c.x)), True), "x"),
        (lambda: sm90.fused_moe((c := layer())._replace(x=off_by_one(c.x)), False), "x"),
        (lambda: sm90.fused_moe((c := layer())._replace(w2=off_by_one(c.w2)), False), "w2"),
    ],
    ids=["quantize", "gemm", "one launch", "several launches", "weight of several launches"],
)
def test_what_is_not_aligned_is_refused_by_name(run: Callable[[], Any], name: str, calls: list[Any]) -> None:
    with pytest.raises(KernelError, match=rf"^{name}: found address 0x\w+, expected a multiple of 16"):
        run()
    assert not calls


class Copies(TorchDispatchMode):
    """Writes down every copy of a tensor."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.seen.append(("copy", None))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("one_launch", [True, False])
def test_nothing_is_copied_between_launches(one_launch: bool, calls: list[Any]) -> None:
    """The sum looks up weights while the launch before it still runs: that must not be what copies them."""
    made = layer()
    ids, weights = (t.T.contiguous().T for t in (made.topk_ids, made.topk_weights))
    with Copies(calls):
        sm90.fused_moe(made._replace(topk_ids=ids, topk_weights=weights), one_launch)
    names = [name for name, _ in calls]
    assert names[:2] == ["copy", "copy"] and "copy" not in names[2:] and len(names) > 2


@pytest.mark.parametrize("one_launch", [True, False])
def test_too_many_choices_a_token_are_refused(one_launch: bool, calls: list[Any]) -> None:
    sm90.fused_moe(layer(top_k=64), one_launch)
    calls.clear()
    with pytest.raises(KernelError, match=r"^topk_ids: .*\[3, 65\].*top_k <= 64"):
        sm90.fused_moe(layer(top_k=65), one_launch)
    assert not calls


@pytest.mark.parametrize("tokens", [3, 1500], ids=["few pairs", "many pairs"])
def test_too_many_experts_are_refused(tokens: int, calls: list[Any]) -> None:
    sm90.fused_moe(layer(tokens=tokens, experts=512), False)
    calls.clear()
    with pytest.raises(KernelError, match=r"^w13: found 513 experts, expected at most 512"):
        sm90.fused_moe(layer(tokens=tokens, experts=513), False)
    assert not calls


def test_a_kernel_asked_for_by_name_runs_no_layer_that_it_would_get_wrong(calls: list[Any]) -> None:
    few, n8, _ = layers.ROWS
    odd = layer(hidden=384)
    with pytest.raises(KernelError, match=r"n8: does not run this layer: hidden 384 or inner 256"):
        sm90.fused_moe(odd, n8)
    sm90.fused_moe(odd)
    assert "fused_layer" not in {name for name, _ in calls}, "the choice took it"
    calls.clear()
    slow = layer(tokens=40)  # of one expert's 80 rows n8 is slow, not wrong
    assert layers.choose(sm90.layer_of(slow)) is not n8
    sm90.fused_moe(slow, n8)
    assert {name for name, _ in calls} == {"fused_layer"}
    calls.clear()
    with pytest.raises(KernelError, match=r"n8f: does not run this layer: 80 pairs, this kernel holds 64"):
        sm90.fused_moe(slow, few)
    assert not calls
    sm90.fused_moe(layer(tokens=32), few)
    assert [name for name, _ in calls] == ["fused_layer"]


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: OPS.fused_moe(*layer(top_k=0)), r"topk_ids: .*top_k at least 1"),
        (lambda: OPS.fused_moe(*layer()._replace(expert_begin=-1)), r"expert_begin: found -1"),
        (lambda: OPS.fused_moe(*layer()._replace(expert_begin=1 << 31)), r"expert_begin: found 2147483648"),
        (lambda: OPS.fused_moe(*layer()._replace(routed_experts=-8)), r"routed_experts: found -8"),
        (lambda: OPS.quantize_fp8(torch.zeros(2, 0), "token"), r"x: .*K at least 1"),
        (
            lambda: OPS.grouped_gemm(
                *gemm()._replace(weight=gemm().weight[:0], weight_scale=gemm().weight_scale[:0])
            ),
            r"weight: .*at least one expert",
        ),
        (
            lambda: OPS.linear(*LinearCall(gemm().x, gemm().x_scale, gemm().weight[0, :0], gemm().weight_scale[0, :0],
                                           torch.bfloat16, "sm90")),
            r"weight: .*at least one expert and one row",
        ),
    ],
    ids=["no choices", "negative begin", "begin", "routed", "no inputs", "no experts", "no rows"],
)  # fmt: skip
def test_empty_and_impossible_arguments_are_refused(run: Callable[[], Any], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        run()


def test_a_compiler_is_refused_what_the_op_refuses() -> None:
    weight, scale = (torch.empty(shape, device="meta") for shape in ((1, 100, 64), (1, 100, 1)))
    with pytest.raises(KernelError, match="N=100"):
        OPS.prepack(weight.to(torch.int8), scale)


def test_few_pairs_want_a_multiprocessor_a_token(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a GPU may have fewer multiprocessors than there are tokens; n8f reads one token a block."""
    few, n8, _ = layers.ROWS
    asked = layer(tokens=20, experts=16)
    for blocks, chosen in ((132, few), (20, few), (19, n8)):
        monkeypatch.setattr(sm90, "multiprocessors", lambda _, blocks=blocks: blocks)
        assert layers.choose(sm90.layer_of(asked)) is chosen
    sm90.fused_moe(asked)
    assert {name for name, _ in calls} == {"fused_layer"}
    with pytest.raises(KernelError, match=r"n8f: .*: tokens a multiprocessor 2, this kernel holds 1$"):
        sm90.fused_moe(asked, few)
