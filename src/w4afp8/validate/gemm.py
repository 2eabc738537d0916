"""The product that an engine computes from a checkpoint, and what its static scales do to the activations.

Letters: T tokens, E experts of a batch, N x K a weight, G groups along K.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from w4afp8.families._spec import PROJECTIONS
from w4afp8.formats._spec import GroupWeight, MicroWeight
from w4afp8.formats._target import CheckpointFormat
from w4afp8.numerics import fp8
from w4afp8.validate import fused
from w4afp8.validate.findings import Check, LayerNumbers
from w4afp8.validate.products import BATCH_BYTES, Batch, compare_layer, compare_products, swiglu
from w4afp8.validate.sides import Inputs, Side

# e4m3 rounds to 2.6 % (rms) where it is normal; a static scale that leaves more crushes or clips the activations.
STATIC_ERROR = 0.2
CLIPPED = 0.01  # share of recorded activations beyond 448 * input_scale
PRODUCTS = {
    "W4AFP8": "torch.ops.w4afp8.grouped_gemm on the packed bytes",
    "MXFP4": "a plain product of the packed bytes, made bfloat16 as weight-only engines do,",
}


class GemmChecks:
    """The grouped GEMM of every expert examined, and what static activation scales do to its inputs."""

    def __init__(self, target: CheckpointFormat) -> None:
        self.target = target
        self.gemm = Check("grouped GEMM", f"{PRODUCTS[target.scheme]} equals a float64 product")
        self.fused = Check("fused layer", "torch.ops.w4afp8.fused_moe on the packed bytes equals the float64 layer")
        if target.scheme not in fused.SCHEMES:
            self.fused.idle = f"no op here computes a layer of {target.scheme}"
        self.static = Check("static activations", "the static scale neither clips nor crushes recorded activations")
        if not target.input_scale.indexed:
            self.static.idle = f"engines of {target.name} scale activations when they see them"

    @property
    def all(self) -> list[Check]:
        return [self.gemm, self.fused, self.static]

    def run(self, output: Side, numbers: LayerNumbers, inputs: Inputs, fold_H: Tensor, chosen: list[int]) -> None:
        """Multiply the chosen experts of one layer in batches of at most `BATCH_BYTES`.

        The fused layer runs on every batch where a GPU multiplies, on the first one of a layer elsewhere.
        """
        layer, kind = numbers.layer, output.device.type
        expert_bytes = sum(output.weights.inventory[n].span_bytes for n in output.expert_names(layer, 0).values())
        step = max(1, BATCH_BYTES[kind] // expert_bytes)
        sites = ("gate_up", "down") if self.target.input_scale.indexed else ()
        ranges = {site: _Range(self._static_scale(output, layer, site)) for site in sites}
        if ranges:
            ranges["gate_up"].see(inputs.x * fold_H)
        for begin in range(0, len(chosen), step):
            batch = chosen[begin : begin + step]
            gate_up, down = (_load(output, layer, site, batch) for site in ("gate_up", "down"))
            rows = [inputs.rows_of(expert)[0] for expert in batch]
            exact = self._multiply(output, numbers, "gate_up", batch, gate_up, [inputs.x[r] * fold_H for r in rows])
            hidden = [swiglu(product) for product in exact]
            for h, expert, row in zip(hidden, batch, rows, strict=True) if ranges else ():
                ranges["down"].see(h[inputs.weight_of(expert, row) > 0])
            self._multiply(output, numbers, "down", batch, down, hidden)
            if self.fused.idle is None and (kind == "cuda" or begin == 0):
                self._fuse(numbers, replace(inputs, x=inputs.x * fold_H), batch, gate_up, down)
        for site, seen in ranges.items():
            numbers.activation[site] = seen.numbers()
            if inputs.recorded:
                self._judge_static(output, layer, site, seen)

    def _multiply(
        self, output: Side, numbers: LayerNumbers, site: str, batch: list[int], weights: Batch, x: list[Tensor]
    ) -> list[Tensor]:
        """The float64 products of a batch, after comparing the op's with them."""
        names = [f"{output.family.expert(output.d, numbers.layer, expert)} {site}" for expert in batch]
        exact, error = compare_products(self.gemm, names, weights, x)
        numbers.gemm[site] = max(numbers.gemm.get(site, 0.0), error)
        return exact

    def _fuse(self, numbers: LayerNumbers, inputs: Inputs, batch: list[int], gate_up: Batch, down: Batch) -> None:
        name = f"layer {numbers.layer}, experts {batch[0]} to {batch[-1]}"
        error = compare_layer(self.fused, name, inputs, batch, gate_up, down)
        if error is not None:
            numbers.fused = max(numbers.fused or 0.0, error)

    def _static_scale(self, output: Side, layer: int, site: str) -> float:
        """What SGLang multiplies with: the largest of the layer's experts, rounded to bfloat16."""
        projections = PROJECTIONS[:2] if site == "gate_up" else PROJECTIONS[2:]
        names = (
            self.target.input_scale.tensor_name(output.family.expert(output.d, layer, expert), projection)
            for expert in range(output.d.experts)
            for projection in projections
        )
        largest = torch.stack([output.reader.read(name).reshape(()) for name in names]).max()
        return float(largest.to(torch.bfloat16))

    def _judge_static(self, output: Side, layer: int, site: str, seen: _Range) -> None:
        self.static.examined += 1
        name = self.target.input_scale.tensor_name(
            output.family.expert(output.d, layer, 0), "gate_proj" if site == "gate_up" else "down_proj"
        )
        if not seen.clipped <= CLIPPED:
            self.static.blame(
                name, f"{seen.clipped:.1%} of the recorded activations beyond 448 * {seen.scale:g}",
                f"at most {CLIPPED:.0%}", "calibrate this layer's activation scale again",
            )  # fmt: skip
        elif not seen.error <= STATIC_ERROR:
            self.static.blame(
                name, f"recorded activations off by {seen.error:.1%} under the scale {seen.scale:g}",
                f"at most {STATIC_ERROR:.0%}", "the scale is far too large: calibrate it again",
            )  # fmt: skip


class _Range:
    """What a static scale does to the activations it has seen."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.amax = 0.0
        self._beyond = self._count = 0
        self._difference = self._size = 0.0

    def see(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        x = x.float()
        self.amax = max(self.amax, float(x.abs().max()))
        self._beyond += int((x.abs() > fp8.LARGEST * self.scale).sum())
        self._count += x.numel()
        difference = fp8.round_static(x, self.scale) - x
        self._difference += float(difference.square().sum(dtype=torch.float64))
        self._size += float(x.square().sum(dtype=torch.float64))

    @property
    def clipped(self) -> float:
        return self._beyond / max(1, self._count)

    @property
    def error(self) -> float:
        return float((self._difference / self._size) ** 0.5) if self._size else 0.0

    def numbers(self) -> dict[str, float]:
        return {
            "amax": self.amax, "scale": self.scale, "range": fp8.LARGEST * self.scale, "clipped": self.clipped,
            "error": self.error,
        }  # fmt: skip


def _load(output: Side, layer: int, site: str, batch: list[int]) -> Batch:
    """Gate and up stacked on rows, gate first, or down: bytes as they are on disk, scales as the engine casts them.

    On a GPU both are prepacked, as an engine that calls the sm_90a kernels does at load.
    """
    packed, scales, decoded = [], [], []
    projections = PROJECTIONS[:2] if site == "gate_up" else PROJECTIONS[2:]
    for expert in batch:
        names = output.expert_names(layer, expert)
        items = [output.weights.inventory[names[projection]] for projection in projections]
        of_micro = items[0].format is not None and items[0].format.form is MicroWeight
        stored = [[output.read(spec.name) for spec in item.tensors[:2]] for item in items]
        if of_micro:
            packed.append(torch.cat([codes.view(torch.uint8) for codes, _ in stored]))
            scales.append(torch.cat([exponent.view(torch.uint8) for _, exponent in stored]))
        else:
            packed.append(torch.cat([_as_the_op_takes(codes) for codes, _ in stored]))
            scales.append(torch.cat([scale for _, scale in stored]).to(torch.bfloat16))
        weights = [output.group_weight(names[projection]) for projection in projections]
        codes_NK, scale_NG = torch.cat([w.codes_NK for w in weights]), torch.cat([w.scale_NG for w in weights])
        decoded.append(GroupWeight(codes_NK, scale_NG, weights[0].group_k))
    weight, scale, layout = torch.stack(packed), torch.stack(scales), "mxfp4" if of_micro else "canonical"
    if output.device.type == "cuda":
        (weight, scale), layout = torch.ops.w4afp8.prepack(weight, scale), "sm90"
    return Batch(weight, scale, layout, decoded)


def _as_the_op_takes(stored: Tensor) -> Tensor:
    """int8 [N, K/2]: as stored, or of 32-bit words with code + 8 in each nibble what an engine makes at load."""
    return stored if stored.dtype == torch.int8 else (stored.view(torch.uint8) ^ 0x88).view(torch.int8)
