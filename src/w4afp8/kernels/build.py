"""Compiles the CUDA sources into one library that every torch from 2.10 on loads.

    python -m w4afp8.kernels.build                 # compile, link, install beside this file
    python -m w4afp8.kernels.build --compile-only  # compile every kernel for sm_90a; needs no GPU and no CUDA torch

A wheel carries the library; a source install compiles on first use of a CUDA tensor when `nvcc` is found (the CUDA
toolkit's or the one in PyPI's `nvidia-cuda-nvcc`) and keeps it in the user's cache directory under a name made of the
sources' digest.  Without either the plain torch ops serve.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from w4afp8.errors import KernelError
from w4afp8.kernels import settings

HERE = Path(__file__).parent
CSRC = HERE / "csrc"
PACKAGED = HERE / "_sm90.so"
ARCH = "-gencode=arch=compute_90a,code=sm_90a"
CUDA_FLAGS = ("-std=c++20", "-O3", ARCH, "-Xcompiler", "-fPIC")
BINDING_FLAGS = ("-std=c++20", "-O2", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000")
SUFFIXES = (".cu", ".cuh", ".h", ".cpp")

log = logging.getLogger(__name__)


def sources() -> list[Path]:
    """Everything the library is made of, in a fixed order."""
    return sorted(p for p in CSRC.rglob("*") if p.suffix in SUFFIXES)


def digest() -> str:
    """Names the build: the sources and the flags."""
    h = hashlib.sha256(repr((CUDA_FLAGS, BINDING_FLAGS)).encode())
    for path in sources():
        h.update(str(path.relative_to(CSRC)).encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def find_nvcc() -> Path | None:
    """The compiler on the PATH, under CUDA_HOME, in the usual place, or out of PyPI's package."""
    on_path = shutil.which("nvcc")
    candidates = [Path(on_path)] if on_path else []
    if home := settings.cuda_home():
        candidates.append(home / "bin" / "nvcc")
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    if (spec := find_spec("nvidia")) and spec.submodule_search_locations:
        for place in spec.submodule_search_locations:
            candidates += sorted(Path(place).glob("*/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def cached() -> Path:
    """Where a build for these sources is kept."""
    return settings.cache_folder() / f"sm90-{digest()}.so"


def compile_all(nvcc: Path, into: Path, jobs: int) -> list[Path]:
    """Compile every translation unit; the objects, or an error with the compiler's own words."""
    units = [p for p in sources() if p.suffix == ".cu"]
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda p: _compile(nvcc, p, into, CUDA_FLAGS), units))
        includes = [f"-I{path}" for path in _torch_includes()]
        objects.append(_compile(nvcc, CSRC / "bindings.cpp", into, (*BINDING_FLAGS, *includes)))
    return objects


def _compile(nvcc: Path, source: Path, into: Path, flags: Sequence[str]) -> Path:
    target = into / ("-".join(source.relative_to(CSRC).parts) + ".o")
    _run([str(nvcc), *flags, "-c", str(source), "-o", str(target)])
    return target


def _torch_includes() -> list[Path]:
    import torch

    root = Path(torch.__file__).parent / "include"
    return [root, root / "torch" / "csrc" / "api" / "include"]


def link(nvcc: Path, objects: Sequence[Path], target: Path, scratch: Path) -> None:
    """Link against torch's CPU library and, by name only, its CUDA library, which this machine may lack."""
    import torch

    stub = scratch / "libtorch_cuda.so"
    empty = scratch / "empty.cpp"
    empty.write_text("")
    named = ("-Xlinker", "-soname=libtorch_cuda.so")
    _run([str(nvcc), "-shared", "-Xcompiler", "-fPIC", *named, str(empty), "-o", str(stub)])
    lib = Path(torch.__file__).parent / "lib"
    fresh = target.with_suffix(f".{os.getpid()}.tmp")
    _run(
        [
            str(nvcc),
            "-shared",
            "-cudart",
            "static",
            *map(str, objects),
            "-o",
            str(fresh),
            f"-L{scratch}",
            f"-L{lib}",
            "-Xlinker",
            "--no-as-needed",
            "-ltorch_cuda",
            "-ltorch_cpu",
            "-Xlinker",
            "--allow-shlib-undefined",
        ]
    )
    fresh.replace(target)  # readers see the old library or the new one


def build(target: Path, jobs: int) -> float:
    """Compile and link; returns the seconds it took."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise KernelError("nvcc: found none on PATH, in CUDA_HOME or in site-packages, expected CUDA 12.4 or later")
    begin = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        link(nvcc, compile_all(nvcc, Path(scratch), jobs), target, Path(scratch))
    return time.monotonic() - begin


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


@cache
def load() -> bool:
    """Make `torch.ops.w4afp8_sm90` available; False when there is neither a library nor a compiler.

    Called on the first CUDA tensor, never before, so a machine without CUDA never comes here.
    """
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        log.warning("w4afp8: the device is no SM90; the plain torch ops serve")
        return False
    library = next((p for p in (cached(), PACKAGED) if p.is_file()), None)
    if library is None:
        if find_nvcc() is None:
            log.warning("w4afp8: no compiled kernels and no nvcc; the plain torch ops serve, slowly")
            return False
        library = cached()
        log.warning("w4afp8: compiling the sm_90a kernels once, about a minute")
        log.warning("w4afp8: compiled %s in %.0f s", library, build(library, os.cpu_count() or 1))
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m w4afp8.kernels.build", description="Compile the sm_90a kernels.")
    parser.add_argument("--compile-only", action="store_true", help="compile and throw away: what CI does")
    parser.add_argument("--cache", action="store_true", help="into the cache directory instead of the package")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    try:
        if options.compile_only:
            nvcc = find_nvcc()
            if nvcc is None:
                raise KernelError("nvcc: found none on PATH, in CUDA_HOME or in site-packages")
            begin = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                count = len(compile_all(nvcc, Path(scratch), options.jobs))
            print(f"compiled {count} units for sm_90a with {nvcc} in {time.monotonic() - begin:.0f} s")
        else:
            target = cached() if options.cache else PACKAGED
            seconds = build(target, options.jobs)
            print(f"built {target} in {seconds:.0f} s")
    except KernelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
