"""The stacks of a layout multiplied as an engine multiplies them: the bytes in the files, rank by rank, beside float64.

The op decodes a rank's bytes by its own code (kernels/); the float64 side takes the expert out of all ranks' stacks,
decodes what the canonical format says and cuts the rank's share itself.
Letters: E experts of a batch, N x K a rank's share of a weight as it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from w4afp8 import families
from w4afp8.families._spec import PROJECTIONS
from w4afp8.formats._spec import GroupWeight
from w4afp8.kernels import checks
from w4afp8.kernels import device as devices
from w4afp8.layouts._directory import LaidOut
from w4afp8.layouts._experts import Layer
from w4afp8.layouts._record import Record
from w4afp8.layouts._split import folder_of
from w4afp8.validate import fused
from w4afp8.validate.findings import Check, LayerNumbers, Progress, ValidationReport
from w4afp8.validate.products import BATCH_BYTES, Batch, compare_layer, compare_products, swiglu
from w4afp8.validate.sides import Inputs, RecordedInputs, chosen_experts

Decoded = dict[str, GroupWeight]  # by projection


def multiplied(record: Record) -> bool:
    """Whether an op here takes this layout's stacks as they are."""
    return record.layout in checks.LAYOUTS and record.form == "int4"


class PackedChecks:
    """Every rank's own bytes through the ops that engines call."""

    def __init__(self) -> None:
        self.gemm = Check(
            "grouped GEMM", "torch.ops.w4afp8.grouped_gemm on each rank's stacks equals a float64 product"
        )
        self.fused = Check("fused layer", "torch.ops.w4afp8.fused_moe on each rank's stacks equals the float64 layer")

    @property
    def all(self) -> list[Check]:
        return [self.gemm, self.fused]

    def run(
        self, laid: LaidOut, report: ValidationReport, device: torch.device, sample: int | None, progress: Progress
    ) -> None:
        """Multiply `sample` experts of every layer, all of them when it is None, by what their router sent them.

        The fused layer runs on every batch where a GPU multiplies, on the first one of a rank's layer elsewhere.
        """
        if not multiplied(laid.record):
            for check in self.all:
                check.idle = f"no op here multiplies {laid.record.form} in {laid.record.layout}"
            return
        report.proven_by = devices.served_by(device)
        sizes = families.of(laid.config).dimensions(laid.config)
        recorded = RecordedInputs(laid.folder)
        for done, layer in enumerate(laid.layers.values()):
            progress("products", done, len(laid.layers))
            inputs = recorded.layer(layer.number, sizes).to(device)
            numbers = LayerNumbers(
                layer.number, sizes.is_mtp(layer.number), "recorded" if inputs.recorded else "synthetic"
            )
            self._layer(laid, layer, numbers, inputs, chosen_experts(len(layer.experts), sample))
            report.layers.append(numbers)
        progress("products", len(laid.layers), len(laid.layers))

    def _layer(self, laid: LaidOut, layer: Layer, numbers: LayerNumbers, inputs: Inputs, chosen: list[int]) -> None:
        split, device = laid.split, inputs.x.device
        inputs = replace(inputs, x=pad(inputs.x, (0, split.hidden - inputs.x.shape[1])))
        a_layer = sum(spec.span_bytes for _, _, spec in laid.stacker.specs(layer.stem))
        step = max(1, BATCH_BYTES[device.type] * split.local_experts // a_layer)
        for ep_rank in range(split.ep):
            mine = [expert for expert in chosen if expert in split.experts(ep_rank)]
            for begin in range(0, len(mine), step):
                batch = mine[begin : begin + step]
                decoded = [_decoded(laid, layer, expert, device) for expert in batch]
                for tp_rank in range(split.tp):
                    gate_up = _load(laid, layer, "w13", batch, tp_rank, decoded, device)
                    down = _load(laid, layer, "w2", batch, tp_rank, decoded, device)
                    rank = split.rank(ep_rank, tp_rank)
                    self._multiply(laid, layer, numbers, inputs, batch, rank, gate_up, down)
                    if device.type == "cuda" or begin == 0:
                        self._fuse(laid, layer, numbers, inputs, batch, rank, gate_up, down)

    def _multiply(
        self, laid: LaidOut, layer: Layer, numbers: LayerNumbers, inputs: Inputs, batch: list[int], rank: int,
        gate_up: Batch, down: Batch,
    ) -> None:  # fmt: skip
        here = _here(laid, layer, rank)
        x = [inputs.x[inputs.rows_of(expert)[0]] for expert in batch]
        for site, stack, weights in (("gate_up", "w13", gate_up), ("down", "w2", down)):
            exact, error = compare_products(self.gemm, [f"{here}.{stack} of expert {e}" for e in batch], weights, x)
            numbers.gemm[site] = max(numbers.gemm.get(site, 0.0), error)
            x = [swiglu(product) for product in exact] if site == "gate_up" else x

    def _fuse(
        self, laid: LaidOut, layer: Layer, numbers: LayerNumbers, inputs: Inputs, batch: list[int], rank: int,
        gate_up: Batch, down: Batch,
    ) -> None:  # fmt: skip
        name = f"{_here(laid, layer, rank)}, experts {batch[0]} to {batch[-1]}"
        static = _static(laid, layer, rank, inputs.x.device)
        error = compare_layer(self.fused, name, inputs, batch, gate_up, down, static)
        if error is not None:
            numbers.fused = max(numbers.fused or 0.0, error)


def _here(laid: LaidOut, layer: Layer, rank: int) -> str:
    tag = folder_of(rank, laid.split.ranks)
    return f"{tag}/{layer.stem}" if tag else layer.stem


def _static(laid: LaidOut, layer: Layer, rank: int, device: torch.device) -> fused.Static | None:
    """The activation scales that this rank's stacks are multiplied with, where it holds any."""
    first, second = (f"{layer.stem}.{stack}_input_scale" for stack in ("w13", "w2"))
    reader = laid.ranks[rank]
    if first not in reader.specs or second not in reader.specs:
        return None
    return reader.read(first).to(device), reader.read(second).to(device)


def _decoded(laid: LaidOut, layer: Layer, expert: int, device: torch.device) -> Decoded:
    """One whole expert as the canonical format decodes it."""
    found: Decoded = {}
    for holder, tensors in laid.tensors(layer, expert):
        for projection, matrix in holder.matrices(tensors).items():
            found[projection] = GroupWeight.packed(matrix.bytes_NJ.to(device), matrix.scale_NG.float().to(device))
    return found


def _load(
    laid: LaidOut, layer: Layer, stack: str, batch: list[int], tp_rank: int, decoded: Sequence[Decoded],
    device: torch.device,
) -> Batch:  # fmt: skip
    """A rank's bytes of these experts as they stand in its files, and what they ought to be."""
    stored = [laid.stored(layer, expert, stack, tp_rank) for expert in batch]
    packed, scale = (torch.cat([pieces[p.suffix] for pieces in stored]).to(device) for p in laid.stacker.pieces)
    n, k = laid.stacker.shape(stack)
    share = laid.split.share(tp_rank)
    halves = PROJECTIONS[:2] if stack == "w13" else PROJECTIONS[2:]  # gate first: the op's contract
    wanted = [
        _joined([_share(each[name], share, stack == "w13", n // len(halves), k) for name in halves]) for each in decoded
    ]
    return Batch(packed, scale, laid.record.layout, wanted)


def _share(weight: GroupWeight, share: slice, of_rows: bool, n: int, k: int) -> GroupWeight:
    """A TP rank's rows or columns, with zeros up to [n, k]."""
    group = weight.group_k
    columns = slice(share.start // group, share.stop // group)
    codes_NK = weight.codes_NK[share] if of_rows else weight.codes_NK[:, share]
    scale_NG = weight.scale_NG[share] if of_rows else weight.scale_NG[:, columns]
    return GroupWeight(_padded(codes_NK, n, k), _padded(scale_NG, n, k // group), group)


def _joined(parts: Sequence[GroupWeight]) -> GroupWeight:
    codes_NK, scale_NG = torch.cat([p.codes_NK for p in parts]), torch.cat([p.scale_NG for p in parts])
    return GroupWeight(codes_NK, scale_NG, parts[0].group_k)


def _padded(tensor_NM: Tensor, n: int, m: int) -> Tensor:
    return pad(tensor_NM, (0, m - tensor_NM.shape[1], 0, n - tensor_NM.shape[0]))
