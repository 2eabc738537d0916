"""Values, a tensor at a time: finite everywhere, scales that scale, codes that look like rounded weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w4afp8.checkpoint.reader import CheckpointReader
from w4afp8.checkpoint.spec import DTYPES, TensorSpec, raw_bytes
from w4afp8.errors import FormatError
from w4afp8.families._inventory import Item
from w4afp8.families._spec import Role
from w4afp8.formats._spec import GroupWeight, MicroWeight
from w4afp8.formats._target import CheckpointFormat
from w4afp8.numerics import e8m0, groups
from w4afp8.validate import kept
from w4afp8.validate.findings import Check, Histograms, Progress
from w4afp8.validate.sides import Side

SMALLEST_NORMAL = 2.0**-126  # float32's and bfloat16's: below it a GPU may flush to zero
FEWEST_CODES = 8  # of 16: groups are scaled to the full range, so a matrix that uses fewer was not rounded by anyone
LARGEST_MEAN_CODE = 5.0  # mean |code|: weights are bell-shaped (2 to 3), uniform ones reach 4, offset binary read as
# two's complement turns the bell inside out (above 5)
LAYER = re.compile(r"model\.layers\.(\d+)\.")
REQUANTIZE = "the layer must be quantized again"


class ValueChecks:
    """Five checks filled in one pass over the data."""

    def __init__(self, target: CheckpointFormat, record: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.target, self.device = target, device
        self.written: Mapping[str, str] = record.get("digests") or {}
        # layer -> {"gate_up", "down"} -> what calibration decided
        self.decided = {int(row["layer"]): row.get("input_scale") or {} for row in record.get("layers") or []}
        self.digests = Check("digests", "every tensor has the bytes that the run wrote (SHA-256)")
        if not self.written:
            self.digests.skip("the directory's record holds no digests")
        self.finite = Check("finite", "every tensor can be read, and holds no NaN and no infinity")
        self.scales = Check("scales", "group scales are positive, finite, no placeholders, and stay so as bfloat16")
        self.codes = Check("codes", "codes use their range and are spread as rounded weights are")
        self.input_scales = Check("input scales", "activation scales are positive, no placeholders, w1 equal to w3")
        self.histograms = Histograms()
        self.unreadable: set[str] = set()  # matrices of experts whose tensors contradict each other

    @property
    def all(self) -> list[Check]:
        return [self.digests, self.finite, self.scales, self.codes, self.input_scales]

    def run(self, reader: CheckpointReader, inventory: dict[str, Item], output: Side, on_progress: Progress) -> None:
        """Read every tensor once; memory is one expert matrix or 16 MiB of anything else."""
        for done, item in enumerate(inventory.values()):
            on_progress("values", done, len(inventory))
            if item.expected.role == Role.EXPERT:
                self._expert(reader, item)
            else:
                for spec in item.tensors:
                    self._plain(reader, spec)
        self._input_scales(kept.read_scales(reader, output, self.target, self.input_scales))
        on_progress("values", len(inventory), len(inventory))

    def _plain(self, reader: CheckpointReader, spec: TensorSpec) -> None:
        self.finite.examined += 1
        where: str | None = None
        bad, seen, digest = 0, 0, hashlib.sha256()
        for piece in reader.read_bytes(spec.name):
            digest.update(piece.numpy().data)
            values = piece.view(DTYPES[spec.dtype])
            mask = not_finite(values)
            if where is None and bool(mask.any()):
                first = seen + int(mask.nonzero()[0])
                where = f"{spec.name}[{', '.join(map(str, _place(first, spec.shape)))}]"
            bad += int(mask.sum())
            seen += values.numel()
        self._compare_digest(spec.name, digest.hexdigest())
        if bad:
            assert where is not None
            self.finite.blame(where, f"NaN or infinity, and {bad} such values in all", "finite numbers", REQUANTIZE)

    def _expert(self, reader: CheckpointReader, item: Item) -> None:
        assert item.format is not None
        stem = item.expected.stem
        parts = {spec.name.removeprefix(stem): reader.read(spec.name) for spec in item.tensors}
        for spec in item.tensors:
            data = raw_bytes(parts[spec.name.removeprefix(stem)])
            self._compare_digest(spec.name, hashlib.sha256(data.numpy().data).hexdigest())
        try:
            weight = item.format.unpack({suffix: part.to(self.device) for suffix, part in parts.items()})
        except FormatError as error:
            self.finite.blame(stem + error.suffix, str(error), f"a matrix in {item.format.name}", REQUANTIZE)
            self.unreadable.add(item.expected.name)
            return
        if isinstance(weight, MicroWeight):
            if self._are_exponents(item.tensors[1].name, weight.exponent_NG):
                self._group_scales(item.tensors[1].name, weight.doubled().scale_NG)
            self._e2m1_codes(item.expected.name, weight.codes_NK)
            return
        assert isinstance(weight, GroupWeight)
        self._group_scales(item.tensors[1].name, weight.scale_NG)
        self._codes(item.expected.name, weight.codes_NK)

    def _compare_digest(self, name: str, found: str) -> None:
        written = self.written.get(name)
        if written is None:
            return
        self.digests.examined += 1
        if written != found:
            self.digests.blame(
                name, f"SHA-256 {found[:12]}...", f"{written[:12]}... as record.json says",
                "the file changed after the run: copy it again, or quantize again",
            )  # fmt: skip

    def _group_scales(self, name: str, scale_NG: Tensor) -> None:
        self.scales.examined += 1
        self.finite.examined += 1
        if bool(not_finite(scale_NG).any()):
            n, g = not_finite(scale_NG).nonzero()[0].tolist()
            self.finite.blame(f"{name}[{n}, {g}]", scale_NG[n, g].item(), "a finite scale", REQUANTIZE)
            return
        seen_NG = groups.round_to_bf16(scale_NG)
        bad = (scale_NG <= 0) | (seen_NG < SMALLEST_NORMAL) | not_finite(seen_NG)
        if bool(bad.any()):
            n, g = bad.nonzero()[0].tolist()
            self.scales.blame(
                f"{name}[{n}, {g}]", f"{scale_NG[n, g].item():g}, and {int(bad.sum())} such scales in all",
                "a positive scale that bfloat16 can hold", REQUANTIZE,
            )  # fmt: skip
            return
        if bool((scale_NG == 1).all()):
            self.scales.blame(name, "1.0 everywhere", "scales that were computed", f"a placeholder: {REQUANTIZE}")
        h = self.histograms
        bins = ((seen_NG.log2() - h.scale_log2_from) / h.scale_log2_step).floor().long().clamp(0, len(h.scales) - 1)
        for bin_, count in enumerate(torch.bincount(bins.flatten(), minlength=len(h.scales)).tolist()):
            h.scales[bin_] += count

    def _are_exponents(self, name: str, exponent_NG: Tensor) -> bool:
        """Whether every E8M0 byte is a number."""
        bad = (exponent_NG == e8m0.NAN).nonzero()
        if len(bad):
            n, g = bad[0].tolist()
            self.finite.examined += 1
            self.finite.blame(f"{name}[{n}, {g}]", "the byte 255, NaN in E8M0", "a power of two", REQUANTIZE)
        return not len(bad)

    def _e2m1_codes(self, name: str, codes_NK: Tensor) -> None:
        """e2m1 has no code to take for another encoding's: what can be told is whether they are used."""
        self.codes.examined += 1
        counts = torch.bincount(codes_NK.flatten(), minlength=16)
        for code, count in enumerate(counts.tolist()):
            self.histograms.codes[code] += count
        used = int((counts > 0).sum())
        if used < FEWEST_CODES:
            self.codes.blame(name, f"{used} different codes", f"at least {FEWEST_CODES} of 16", REQUANTIZE)

    def _codes(self, name: str, codes_NK: Tensor) -> None:
        self.codes.examined += 1
        counts = torch.bincount((codes_NK.flatten() + 8).view(torch.uint8), minlength=16).cpu()
        for code, count in enumerate(counts.tolist()):
            self.histograms.codes[code] += count
        used = int((counts > 0).sum())
        mean = float((counts * (torch.arange(16) - 8).abs()).sum() / counts.sum())
        if used == 1:
            self.codes.blame(name, f"the code {int(counts.argmax()) - 8} everywhere", "rounded weights", REQUANTIZE)
        elif used < FEWEST_CODES:
            self.codes.blame(name, f"{used} different codes", f"at least {FEWEST_CODES} of 16", REQUANTIZE)
        elif mean > LARGEST_MEAN_CODE:
            self.codes.blame(
                name, f"a mean |code| of {mean:.2f}", f"at most {LARGEST_MEAN_CODE:g}",
                "these look like offset-binary nibbles (code + 8); the format wants two's complement",
            )  # fmt: skip

    def _input_scales(self, read: Mapping[str, float]) -> None:
        gate, up = (self.target.input_scale.names.get(p) for p in ("gate_proj", "up_proj"))
        for name, value in read.items():
            self.input_scales.examined += 1
            seen = float(torch.tensor(value).to(torch.bfloat16))
            if not SMALLEST_NORMAL <= seen < float("inf"):
                self.input_scales.blame(name, f"{value:g}", "a positive number that bfloat16 can hold", REQUANTIZE)
            elif value == 1:
                self.input_scales.blame(name, "1.0", "a calibrated scale", f"a placeholder: {REQUANTIZE}")
            twin = name.replace(f".{gate}.input_scale", f".{up}.input_scale")
            if twin != name and read.get(twin) != value:
                self.input_scales.blame(
                    twin, read.get(twin), f"{value!r} as {name} has", "the engine multiplies both by one number"
                )
            self._compare_with_record(name, value)

    def _compare_with_record(self, name: str, value: float) -> None:
        layer = LAYER.match(name)
        down = name.endswith(f".{self.target.input_scale.names.get('down_proj')}.input_scale")
        decided = self.decided.get(int(layer[1]), {}).get("down" if down else "gate_up") if layer else None
        if decided is not None and decided != value:
            self.input_scales.blame(
                name, f"{value!r}", f"{decided!r} as record.json says", "copy act_scales again, or quantize again"
            )


def not_finite(values: Tensor) -> Tensor:
    """True where a number is NaN or infinite, for every dtype a checkpoint can hold."""
    if values.dtype == torch.float8_e4m3fn:
        return (values.view(torch.uint8) & 0x7F) == 0x7F
    if values.dtype == torch.float8_e8m0fnu:
        return values.view(torch.uint8) == 0xFF
    if values.dtype == torch.float8_e5m2:
        return (values.view(torch.uint8) & 0x7F) >= 0x7C
    if values.dtype.is_floating_point:
        return ~torch.isfinite(values)
    return torch.zeros(values.shape, dtype=torch.bool)


def _place(flat: int, shape: tuple[int, ...]) -> list[int]:
    place: list[int] = []
    for size in reversed(shape):
        flat, here = divmod(flat, size)
        place.insert(0, here)
    return place
