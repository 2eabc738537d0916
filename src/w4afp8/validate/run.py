"""The order of a validation: headers, then values, then the source, then the product that an engine computes."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from w4afp8 import families
from w4afp8._version import __version__
from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError, RecipeError, W4AFP8Error
from w4afp8.families._inventory import Item
from w4afp8.kernels import device as devices
from w4afp8.validate import config as configs
from w4afp8.validate import fused, kept, layout, structure, written
from w4afp8.validate.carried import check_carried, new_checks, routing_moved
from w4afp8.validate.converted import validate_converted
from w4afp8.validate.experts import ExpertChecks
from w4afp8.validate.findings import Check, LayerNumbers, Progress, ValidationReport, silent
from w4afp8.validate.gemm import GemmChecks
from w4afp8.validate.origin import origin_of
from w4afp8.validate.route import Kind, kind_of
from w4afp8.validate.sides import RecordedInputs, Side, chosen_experts, norm_fold
from w4afp8.validate.values import ValueChecks

NO_SOURCE = "no source given (--against)"


def validate(
    folder: Path,
    against: Path | None = None,
    *,
    on_progress: Progress | None = None,
    sample: int | None = None,
    device: str = "cpu",
) -> ValidationReport:
    """Prove a finished directory; with `against`, prove that it is that source, quantized.

    `sample` experts per layer are compared and multiplied, all of them when it is None; structure and values are
    always complete.  What is wrong stands in the report.  `device` is cpu, cuda (a Hopper GPU: the sm_90a kernels
    multiply, and the exact side is computed there too) or auto.  Memory is a batch of experts, never a layer.
    Raises: CheckpointError when the *source* is unsound, or `folder` is no directory; DeviceError without that GPU.
    """
    began = time.monotonic()
    kind = check_request(folder, against, sample, device)
    if kind is Kind.LAYOUT:
        place = layout.place(folder, sample, device)
        return layout.validate_layout(folder, against, on_progress, sample=sample, device=place)
    if kind is Kind.CONVERTED:
        return validate_converted(folder, against, on_progress)
    place = _place(folder, device)
    progress = on_progress or silent
    source = None
    try:
        if against is not None:
            source = Side.of(CheckpointReader(against), device=place)
        return _Validation(folder, source, progress, sample, place).run(began)
    finally:
        if source is not None:
            source.reader.close()


def check_request(folder: Path, against: Path | None, sample: int | None, device: str) -> Kind:
    """What can be refused before a weight is read; returns which proof it will be.  Raises: as above, RecipeError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory; give the directory of a quantized checkpoint")
    kind = kind_of(folder, against, look=sample is not None or device == "cuda")
    if kind is Kind.QUANTIZED:
        _place(folder, device)
    elif kind is Kind.LAYOUT:
        layout.place(folder, sample, device)
    elif sample is not None:
        raise RecipeError("--quick and --sample: a conversion is always compared whole; leave them out")
    elif device == "cuda":
        raise RecipeError(
            "--device cuda: a conversion is compared number by number, nothing is multiplied; leave it out"
        )
    return kind


def _place(folder: Path, device: str) -> torch.device:
    """Where to multiply: on the GPU only what its kernels multiply.  Raises: RecipeError, DeviceError."""
    scheme = configs.target_of(configs.read_config(folder)[0], configs.read_record(folder)).scheme
    if scheme in fused.SCHEMES:
        return devices.resolve(device, "validate --device cuda")
    if device == "cuda":
        raise RecipeError(f"--device cuda: the sm_90a kernels multiply {', '.join(fused.SCHEMES)}, this is {scheme}")
    return devices.resolve("cpu" if device == "auto" else device, "")


class _Validation:
    """One run: what every step needs, and the report that each adds to."""

    def __init__(
        self, folder: Path, source: Side | None, progress: Progress, sample: int | None, device: torch.device
    ) -> None:
        self.folder, self.source, self.progress, self.sample, self.device = folder, source, progress, sample, device
        self.record = configs.read_record(folder)
        self.config, self.unreadable = configs.read_config(folder)
        self.target = configs.target_of(self.config, self.record)
        name = origin_of(source.reader.folder)["name"] if source else None
        self.report = ValidationReport(__version__, folder.resolve().name, name, self.target.name, sample)
        self.report.proven_by = devices.served_by(device)

    def run(self, began: float) -> ValidationReport:
        inventory = self._structure()
        if inventory is None:
            self._skip_the_rest("the structure is broken")
        else:
            with CheckpointReader(self.folder) as reader:
                output = Side.of(reader, inventory, self.device)
                values = ValueChecks(self.target, self.record, self.device)
                values.run(reader, inventory, output, self.progress)
                self.report.checks += values.all
                self.report.histograms = values.histograms
                self._compare(output, values.unreadable)
        self.report.seconds = round(time.monotonic() - began, 3)
        return self.report

    def _structure(self) -> dict[str, Item] | None:
        """The inventory when the structure holds, else None."""
        source_config = self.source.config if self.source else None
        source_folder = self.source.reader.folder if self.source else None
        index, specs = structure.check_index(self.folder)
        tensors, inventory, unknown = self._tensors(specs)
        sixteen = structure.has_sixteen_bit_linears(inventory)
        settings = configs.check_config(self.config, self.target, source_config, bool(self.record), sixteen)
        if unknown:
            settings.blame("config.json", unknown, "a configuration that this program knows", "restore it")
        own_files = self.target.side_files(self.config) if self.record and not tensors.skipped else {}
        files = configs.check_side_files(self.folder, own_files, source_folder)
        own_shards = {spec.shard for spec in specs.values()}
        if kept.path_of(self.folder, self.target):
            own_shards.add(self.target.input_scale.file)
        form = written.check_written(self.folder, sorted(own_files), sorted(own_shards), self.record)
        self.report.checks += [structure.check_finished(self.folder), index, tensors, settings, files, form]
        self.report.bytes_out = sum(spec.span_bytes for spec in specs.values())
        if self.source is not None:
            self.report.bytes_source = sum(spec.span_bytes for spec in self.source.reader.specs.values())
        return None if index.failed or tensors.failed or tensors.skipped else inventory

    def _tensors(self, specs: dict[str, TensorSpec]) -> tuple[Check, dict[str, Item], str | None]:
        """The check, what it found, and why config.json is of no use."""
        try:
            if self.unreadable:
                raise W4AFP8Error(self.unreadable)
            family = families.of(self.config)
            check, items = structure.check_tensors(specs, family, family.dimensions(self.config), self.target)
            return check, items, None
        except W4AFP8Error as error:
            return structure.tensors_check().skip("config.json says nothing usable"), {}, str(error)

    def _compare(self, output: Side, unreadable: set[str]) -> None:
        """Every expert but those of which a matrix is `unreadable`, which is said already."""
        experts = ExpertChecks(self.record.get("method"))
        gemm = GemmChecks(self.target)
        if self.source is None:
            self.report.checks += [check.skip(NO_SOURCE) for check in (*new_checks(), *experts.all)]
        else:
            same, folds = check_carried(self.source, output, self.record, self.progress)
            self.report.checks += [same, folds, *experts.all]
        self.report.checks += gemm.all
        recorded = RecordedInputs(self.folder)
        layers = [layer for layer in range(output.d.all_layers) if output.d.is_moe(layer)]
        for done, layer in enumerate(layers):
            self.progress("experts", done, len(layers))
            chosen = [
                expert for expert in chosen_experts(output.d.experts, self.sample)
                if unreadable.isdisjoint(output.expert_names(layer, expert).values())
            ]  # fmt: skip
            self._layer(output, layer, chosen, recorded, experts, gemm)
        self.progress("experts", len(layers), len(layers))
        if self.target.input_scale.indexed and not any(layer.inputs == "recorded" for layer in self.report.layers):
            gemm.static.skip("the directory holds no recorded inputs")

    def _layer(
        self, output: Side, layer: int, chosen: list[int], recorded: RecordedInputs, experts: ExpertChecks,
        gemm: GemmChecks,
    ) -> None:  # fmt: skip
        d, source = output.d, self.source
        inputs = recorded.layer(layer, d).to(self.device)
        numbers = LayerNumbers(layer, d.is_mtp(layer), "recorded" if inputs.recorded else "synthetic")
        fold_H = torch.ones(d.hidden, device=self.device) if source is None else norm_fold(source, output, layer)
        if source is not None:
            numbers.routing_moved = routing_moved(source, output, layer, inputs, fold_H, self.report.check("folds"))
            experts.run(source, output, numbers, inputs, fold_H, chosen)
        gemm.run(output, numbers, inputs, fold_H, chosen)
        self.report.layers.append(numbers)

    def _skip_the_rest(self, why: str) -> None:
        values, gemm = ValueChecks(self.target, {}), GemmChecks(self.target)
        rest = [*values.all, *new_checks(), *ExpertChecks(None).all, *gemm.all]
        self.report.checks += [check.skip(why) for check in rest]
