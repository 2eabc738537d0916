"""What this machine has and lacks for the work: what each missing piece costs, and how to get it.  No network."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from w4afp8._version import __version__
from w4afp8.hub.remote import is_logged_in
from w4afp8.kernels import build
from w4afp8.kernels.device import HOPPER
from w4afp8.measure.about import driver, first_line

GB = 10**9
LITTLE_DISK_BYTES = 20 * GB
# package -> (oldest, first too new); the ranges of pyproject.toml, compared with it by a test.
REQUIRED: dict[str, tuple[str, str | None]] = {
    "torch": ("2.10", None), "safetensors": ("0.5", None), "transformers": ("5.17", None),
    "huggingface_hub": ("1.33", "3"),
}  # fmt: skip
OPTIONAL = {
    "hf-xet": ("uploads go through git LFS: an unfinished file is sent again from its beginning", "pip install hf-xet"),
    "matplotlib": ("`bench --plot` draws nothing", 'pip install "w4afp8[plot]"'),
    "pyarrow": ("calibration text in parquet cannot be read", 'pip install "w4afp8[parquet]"'),
}


class Health(StrEnum):
    """How a piece stands."""

    OK = "ok"
    LACKS = "lacks"  # the work goes on without it, at a cost
    BROKEN = "broken"  # the work does not go


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece: what was found; where it is not well, what that costs and how to get it."""

    name: str
    health: Health
    found: str
    cost: str = ""
    get: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(folder: Path) -> list[Finding]:
    """Every piece, in the order in which the work needs them.  `folder` is where an output would be written."""
    found = [Finding("w4afp8", Health.OK, f"{__version__}, Python {platform.python_version()}, {sys.platform}")]
    found += _packages()
    found += [_machine(), _disk(folder), _gpu(), _driver(), _compiler(), _kernels(), _login()]
    return found


def _packages() -> Iterator[Finding]:
    for name, (oldest, too_new) in REQUIRED.items():
        wanted = f">={oldest}" + (f",<{too_new}" if too_new else "")
        have = _version(name)
        fits = have is not None and _order(oldest) <= _order(have) and (not too_new or _order(have) < _order(too_new))
        if fits:
            yield Finding(name, Health.OK, str(have))
        else:
            yield Finding(name, Health.BROKEN, have or "not installed", f"w4afp8 needs {wanted}",
                          f'pip install "{name}{wanted}"')  # fmt: skip
    for name, (cost, get) in OPTIONAL.items():
        have = _version(name)
        yield Finding(name, Health.OK, have) if have else Finding(name, Health.LACKS, "not installed", cost, get)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _order(version: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0), enough to compare releases."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _machine() -> Finding:
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{cores} CPU cores, {memory.available / GB:.0f} of {memory.total / GB:.0f} GB memory free"
    return Finding("machine", Health.OK, found)


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GB:.0f} GB free in {there}"
    if free >= LITTLE_DISK_BYTES:
        return Finding("disk", Health.OK, found)
    cost = "a run refuses to start when its output does not fit"
    return Finding("disk", Health.LACKS, found, cost, "free some, or write elsewhere with -o; --dry-run says how much")


def _gpu() -> Finding:
    slow = "quantizing, validating and evaluating run on the CPU, many times slower"
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} finds none"
        return Finding("GPU", Health.LACKS, built, slow, "a Hopper GPU, its driver, and a torch built for CUDA")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{d.name} ({d.total_memory / GB:.0f} GB)" for d in devices)
    if any((d.major, d.minor) == HOPPER for d in devices):
        return Finding("GPU", Health.OK, found)
    return Finding("GPU", Health.LACKS, found, "the sm_90a kernels do not run; plain torch serves", "a Hopper GPU")


def _driver() -> Finding:
    said = driver()
    if said:
        return Finding("driver", Health.OK, said)
    return Finding("driver", Health.LACKS, "no nvidia-smi", "no GPU can be used", "the NVIDIA driver of the system")


def _compiler() -> Finding:
    nvcc = build.find_nvcc()
    if nvcc is None:
        cost = "the kernels cannot be compiled from source; a wheel that carries them needs no compiler"
        get = "CUDA toolkit 12.4 or later, or `pip install nvidia-cuda-nvcc nvidia-cuda-cccl`"
        return Finding("compiler", Health.LACKS, "no nvcc", cost, get)
    release = first_line([str(nvcc), "--version"], lambda line: "release" in line)
    return Finding("compiler", Health.OK, f"{nvcc}{': ' + release if release else ''}")


def _kernels() -> Finding:
    if library := build.library():
        return Finding("kernels", Health.OK, str(library))
    cost = "the first use on a GPU compiles for about a minute, or, without nvcc, plain torch serves"
    return Finding("kernels", Health.LACKS, "not compiled", cost, "`w4afp8 doctor --build`")


def _login() -> Finding:
    if is_logged_in():
        return Finding("Hub login", Health.OK, "a token is set; nothing was asked of the Hub")
    cost = "nothing can be pushed, and no private or gated model fetched"
    return Finding("Hub login", Health.LACKS, "none", cost, "`hf auth login`, or HF_TOKEN")
