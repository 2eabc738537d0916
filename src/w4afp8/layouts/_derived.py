"""What a rank holds beside its stacks: one static activation scale per stack, and the experts' biases.

Both are made of tensors that the directory carries or keeps as they are, so the way back does not need them.
Letters: E a rank's experts, N output rows as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.layouts._experts import Layer, Read, scale_names
from w4afp8.layouts._spec import STACKS
from w4afp8.layouts._stack import Stacker


def specs(stacker: Stacker, layer: Layer, scaled: bool) -> list[TensorSpec]:
    """`{experts}.w13_input_scale` and so on, where the layout and the checkpoint have such (`scaled`)."""
    found = []
    if scaled and stacker.layout.input_scale:
        found += [TensorSpec(f"{layer.stem}.{stack}_input_scale", "F32", (1,)) for stack in STACKS]
    if layer.biases:
        dtype = layer.biases[0][0].item.tensors[0].dtype
        experts = stacker.split.local_experts
        found += [TensorSpec(f"{layer.stem}.{s}_bias", dtype, (experts, stacker.shape(s)[0])) for s in STACKS]
    return found


def values(stacker: Stacker, layer: Layer, scaled: bool, rank: int, read: Read) -> list[Tensor]:
    """Their values on one rank, in the order of `specs`."""
    ep_rank, tp_rank = divmod(rank, stacker.split.tp)
    held = stacker.split.experts(ep_rank)
    found = list(_input_scales(stacker, layer, held, read)) if scaled and stacker.layout.input_scale else []
    return found + (list(_biases(stacker, layer, held, tp_rank, read)) if layer.biases else [])


def _input_scales(stacker: Stacker, layer: Layer, held: range, read: Read) -> Iterator[Tensor]:
    """The largest of the rank's experts, float32 [1] each.

    Agrees with: SGLang 0.5.23, which rounds every scale to bfloat16 and takes the largest of its local experts.
    """
    for projections in STACKS.values():
        names = [scale_names(layer, expert)[p] for expert in held for p in projections]
        every = torch.cat([read(name, None).reshape(1).float() for name in names])
        yield (every.bfloat16().float() if stacker.layout.input_scale == "BF16" else every).amax().reshape(1)


def _biases(stacker: Stacker, layer: Layer, held: range, tp_rank: int, read: Read) -> Iterator[Tensor]:
    every = [_biases_of(layer, expert, read) for expert in held]
    yield from stack_biases(stacker, every, tp_rank)


def stack_biases(stacker: Stacker, every: Sequence[Mapping[str, Tensor]], tp_rank: int) -> tuple[Tensor, Tensor]:
    """Of w13 and w2, [E, N] each, from every expert's own by projection: cut, padded and joined as the rows of the
    weights; the bias of down only on the first TP rank, because the ranks' results are added up.
    """
    order = stacker.layout.bias
    assert order is not None, "the plan lets no layout without biases through"
    share, s = stacker.split.share(tp_rank), stacker.split
    gate_up = [torch.cat([_padded(bias[p][share], s.intermediate) for p in stacker.layout.w13]) for bias in every]
    down = torch.stack([_padded(bias["down_proj"], s.hidden) for bias in every])
    down = down if tp_rank == 0 else torch.zeros_like(down)
    return order.store(torch.stack(gate_up)).contiguous(), order.store(down).contiguous()


def _biases_of(layer: Layer, expert: int, read: Read) -> Mapping[str, Tensor]:
    found: dict[str, Tensor] = {}
    for holder in layer.biases[expert]:
        bias_N = read(holder.item.expected.name, holder.part)
        rows = split_bias(bias_N, len(holder.projections), holder.item.expected.interleaved)
        found |= dict(zip(holder.projections, rows, strict=True))
    return found


def split_bias(bias_N: Tensor, count: int, interleaved: bool) -> list[Tensor]:
    """The biases of `count` projections that share one, their rows in turn or one after the other."""
    split = bias_N.view(-1, count).unbind(1) if interleaved else bias_N.chunk(count)
    return [each.contiguous() for each in split]


def _padded(bias_N: Tensor, n: int) -> Tensor:
    return pad(bias_N, (0, n - len(bias_N)))
