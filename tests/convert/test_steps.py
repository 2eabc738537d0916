"""Arrangements of experts: fused, stacked or a name each; read and written one expert at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from w4afp8 import formats
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.checkpoint.writer import ShardWriter
from w4afp8.convert.steps import Place, Step, chains, in_place, made_of, taken_apart
from w4afp8.errors import CheckpointError, FormatError
from w4afp8.families._inventory import Item
from w4afp8.families._spec import Expected, Role
from w4afp8.formats import _rows
from w4afp8.formats._spec import BlockWeight, GroupWeight, MicroWeight, PlainWeight, Weight

FORM = formats.get("deepseek_mxfp4")
STEM = "model.layers.2.mlp.experts"
E, N, K = 3, 4, 64


def stacked_items() -> list[Item]:
    """Fused gate and up rows in turn, and down: a layer of E experts in two tensors each."""
    both = Expected(
        f"{STEM}.gate_up_proj.weight", Role.EXPERT, (2 * N, K), 2, True, E, ("gate_proj", "up_proj"), interleaved=True
    )
    down = Expected(f"{STEM}.down_proj.weight", Role.EXPERT, (K, 32), 2, True, E)
    return [Item(e, FORM, tuple(FORM.specs(e.stem, *e.shape, e.stack))) for e in (both, down)]


def expert_stem(layer: int, expert: int) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}"


def test_stacked_experts_get_a_name_each() -> None:
    steps = list(taken_apart(stacked_items(), expert_stem))
    assert len(steps) == 2 * E
    first, down = steps[1], steps[E + 1]
    assert first.sources == (Place(f"{STEM}.gate_up_proj", (2 * N, K), 2, True, E, 1),)
    assert first.targets == (Place(f"{STEM}.1.gate_proj", (N, K)), Place(f"{STEM}.1.up_proj", (N, K)))
    assert down.targets == (Place(f"{STEM}.1.down_proj", (K, 32)),)
    made = made_of(steps, FORM)
    assert [s.name for s in made[f"{STEM}.gate_up_proj.weight"]][:4] == [
        f"{STEM}.0.gate_proj.weight", f"{STEM}.0.gate_proj.scale",
        f"{STEM}.0.up_proj.weight", f"{STEM}.0.up_proj.scale",
    ]  # fmt: skip
    assert len(made[f"{STEM}.down_proj.weight"]) == 2 * E


def test_a_stack_that_stays_is_one_tensor_of_as_many_steps() -> None:
    steps = list(in_place(stacked_items()))
    assert [(s.targets[0].index, s.targets[0].part) for s in steps] == [(0, 0), (1, 1), (2, 2)] * 2
    made = made_of(steps, FORM)
    assert [(s.name, s.shape) for s in made[f"{STEM}.gate_up_proj.weight"]] == [
        (f"{STEM}.gate_up_proj.weight", (E, 2 * N, K // 2)),
        (f"{STEM}.gate_up_proj.scale", (E, 2 * N, K // 32)),
    ]
    assert sorted(map(len, chains(steps))) == [E, E]
    assert len(chains(list(taken_apart(stacked_items(), expert_stem)))) == 2 * E


def test_steps_that_share_any_target_are_one_chain_in_order() -> None:
    def step(*stems: str) -> Step:
        return Step(stems[0], 0, (), tuple(Place(stem, (1, 32)) for stem in stems))

    steps = [step("a"), step("b"), step("c"), step("a", "b"), step("b"), step("d"), step("c")]
    assert chains(steps) == [[steps[0], steps[1], steps[3], steps[4]], [steps[2], steps[6]], [steps[5]]]


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    "whole",
    [
        GroupWeight(torch.randint(-8, 8, (6, 256), dtype=torch.int8), torch.rand(6, 2)),
        MicroWeight(torch.randint(0, 16, (6, 64), dtype=torch.uint8), torch.randint(1, 250, (6, 2)).byte()),
        PlainWeight(torch.randn(6, 8).to(torch.bfloat16)),
    ],
    ids=lambda weight: type(weight).__name__,
)
def test_rows_of_two_matrices_come_apart_and_together(whole: Weight, interleaved: bool) -> None:
    one, other = _rows.split(whole, 2, interleaved)
    real = whole.dequantize()
    assert torch.equal(one.dequantize(), real[0::2] if interleaved else real[:3])
    assert torch.equal(other.dequantize(), real[1::2] if interleaved else real[3:])
    assert torch.equal(_rows.join([one, other], interleaved).dequantize(), real)
    with pytest.raises(FormatError, match="6 rows are not those of 4"):
        _rows.split(whole, 4, interleaved)


def test_rows_that_share_a_scale_do_not_come_apart() -> None:
    with pytest.raises(FormatError, match="its scales span rows"):
        _rows.split(BlockWeight(torch.zeros(4, 4), torch.ones(1, 1)), 2, interleaved=False)


def stack_writer(folder: Path, tensor: Tensor) -> ShardWriter:
    return ShardWriter(
        folder / "a.safetensors", [TensorSpec("x", "I32", tuple(tensor.shape)), TensorSpec("y", "U8", (1,))]
    )


def test_a_stack_is_written_part_by_part_to_the_same_bytes_and_digest(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int32).view(3, 2, 4)
    (tmp_path / "once").mkdir()
    with stack_writer(tmp_path / "once", whole) as once:
        once.put("x", whole)
        once.put("y", torch.zeros(1, dtype=torch.uint8))
    with stack_writer(tmp_path, whole) as parts:
        for index in range(3):
            parts.put_part("x", index, whole[index])
        parts.put("y", torch.zeros(1, dtype=torch.uint8))
    assert parts.digests == once.digests
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "once" / "a.safetensors").read_bytes()
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], whole)


def test_parts_out_of_order_missing_or_misshapen_are_refused(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int32).view(3, 2, 4)
    writer = stack_writer(tmp_path, whole)
    with pytest.raises(CheckpointError, match="part 1 came, expected part 0"):
        writer.put_part("x", 1, whole[1])
    with pytest.raises(CheckpointError, match=r"planned so, but got torch.int32 \[2, 2\]"):
        writer.put_part("x", 0, whole[0, :, :2])
    writer.put_part("x", 0, whole[0])
    with pytest.raises(CheckpointError, match=r"not planned for a\.safetensors, or written twice"):
        writer.put("x", whole)
    writer.put("y", torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="never written: x"):
        writer.finish()
    writer.abandon()
    spec = TensorSpec("x", "I32", (3, 2, 4), "a", 100)
    assert spec.part(2) == replace(spec, shape=(2, 4), begin=100 + 2 * 32)
    for index in (-1, 3):
        with pytest.raises(CheckpointError, match=f"has no part {index}"):
            spec.part(index)
