"""Building: what is found, what is said, what a wheel carries, and that nothing without CUDA ever fails to import."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from w4afp8.cli import cli, code_of
from w4afp8.errors import DeviceError, KernelError
from w4afp8.kernels import build, device

REPOSITORY = Path(__file__).parent.parent.parent
FAKE_NVCC = '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho compiled > "$2"\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No library anywhere, no compiler, a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PACKAGED", tmp_path / "package" / "_sm90.so")
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    build.why_not.cache_clear()
    yield tmp_path
    build.why_not.cache_clear()


@pytest.fixture
def nvcc(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes what it is told to, and nothing of use."""
    path = home / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text(FAKE_NVCC)
    path.chmod(0o755)
    monkeypatch.setattr(build, "find_nvcc", lambda: path)
    return path


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "a Hopper")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize("place", ["cu13", "cuda_nvcc"])
def test_nvcc_out_of_site_packages_counts(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "nvidia" / place / "bin" / "nvcc"
    inside.parent.mkdir(parents=True)
    inside.touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(build, "USUAL_NVCC", tmp_path / "none")
    assert build.find_nvcc() == inside


def test_a_packaged_library_serves_only_its_own_sources(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library() is None
    build.build(build.PACKAGED, 1)
    assert build.library() == build.PACKAGED and build.stamp(build.PACKAGED).read_text().strip() == build.digest()
    monkeypatch.setattr(build, "CUDA_FLAGS", (*build.CUDA_FLAGS, "-DX"))
    assert build.library() is None, "it was made of other sources"
    build.build(build.cached(), 1)
    assert build.library() == build.cached()


def test_without_a_compiler_plain_torch_serves_and_the_warning_says_what_to_install(
    home: Path, hopper: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not build.load() and not build.load()
    assert len(caplog.records) == 1 and "pip install nvidia-cuda-nvcc nvidia-cuda-cccl" in caplog.text
    assert device.resolve("auto", "a test").type == "cpu"
    with pytest.raises(DeviceError, match=r"a test: found a Hopper, but its kernels are not to be had: no compiled"):
        device.resolve("cuda", "a test")


def test_the_first_use_compiles_and_a_library_that_does_not_load_is_no_crash(
    nvcc: Path, hopper: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not build.load()
    assert build.cached().read_text() == "compiled\n"
    assert "compiling the sm_90a kernels once" in caplog.text and "plain torch ops serve" in caplog.text


def test_a_compiler_that_fails_is_no_crash(nvcc: Path, hopper: None) -> None:
    nvcc.write_text("#!/bin/sh\necho no such architecture >&2\nexit 1\n")
    assert "no such architecture" in str(build.why_not())
    with pytest.raises(KernelError, match="no such architecture"):
        build.ensure()


def test_doctor_builds(nvcc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = lambda: code_of(lambda: cli.main(args=["doctor", "--build"], standalone_mode=False))  # noqa: E731
    assert run() == 0
    out, err = capsys.readouterr()
    assert f"compiled the sm_90a kernels with {nvcc} into {build.cached()}" in err and build.cached().name in "".join(
        out.split()
    )
    assert run() == 0 and f"the kernels are there: {build.cached()}" in capsys.readouterr().err
    build.cached().unlink()
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert run() == 2 and "pip install nvidia-cuda-nvcc" in capsys.readouterr().err


def wheel_of(tmp_path: Path, path: str) -> tuple[Path, str]:
    """The wheel of a copy of this repository, built offline by this Python; and what pip printed."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "_sm90.*")
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index",
               "-w", str(tmp_path / "wheels"), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    return wheel, done.stdout + done.stderr


def test_a_wheel_built_where_nvcc_is_carries_the_library(nvcc: Path, tmp_path: Path) -> None:
    wheel, said = wheel_of(tmp_path, f"{nvcc.parent}:{os.environ['PATH']}")
    assert wheel.name.split("-", 2)[2].startswith("py3-none-linux_"), wheel.name
    assert f"w4afp8: compiled the sm_90a kernels with {nvcc}" in said
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("_sm90.so", "_sm90.digest", "csrc/bindings.cpp", "csrc/sm90/grouped_gemm/instances/t8.cu",
                 "csrc/ptx/wgmma.cuh", "tuned/h200.json"):  # fmt: skip
        assert f"w4afp8/kernels/{name}" in names
    where = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(where), str(wheel)],
        check=True,
    )
    program = (
        "import torch, w4afp8\n"
        f"assert w4afp8.__file__.startswith({str(where)!r}), w4afp8.__file__\n"
        "from w4afp8.kernels import build, ops\n"
        "assert build.library() == build.PACKAGED and build.PACKAGED.is_file()\n"
        "q, s = torch.ops.w4afp8.quantize_fp8(torch.ones(2, 128), 'token')\n"
        "w, ws = torch.zeros(1, 64, 64, dtype=torch.int8), torch.ones(1, 64, 1)\n"
        "out = torch.ops.w4afp8.grouped_gemm(q, s, w + 0x11, ws, torch.tensor([0, 2]), torch.float32)\n"
        "assert torch.allclose(out, torch.full((2, 64), 128.0)), out\n"
        "assert not torch.cuda.is_initialized() and not hasattr(torch.ops.w4afp8_sm90, 'grouped_gemm')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(where), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_built_where_nothing_compiles_is_pure(nvcc: Path, tmp_path: Path) -> None:
    nvcc.write_text("#!/bin/sh\necho no such architecture >&2\nexit 1\n")
    wheel, said = wheel_of(tmp_path, f"{nvcc.parent}:{os.environ['PATH']}")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "the kernels do not compile here, and are left to first use" in said
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "kernels/_sm90" in name]


def test_what_a_wheel_gets_is_said(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "lib" / "_sm90.so"
    assert build.for_wheel(target).startswith(f"compiled the sm_90a kernels with {nvcc}") and target.is_file()
    build.build(build.PACKAGED, 1)
    assert build.for_wheel(target).startswith("carries the kernels that were compiled before")
    build.PACKAGED.unlink()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    target.unlink()
    assert "do not compile here" in build.for_wheel(target) and not target.exists()
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert build.for_wheel(target).startswith("found no nvcc to compile")
