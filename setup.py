"""Builds the wheel; pyproject.toml has everything else.

Where nvcc and torch are at hand (`pip wheel . --no-build-isolation`) the wheel carries the compiled sm_90a kernels and
is one for this platform, any Python 3; elsewhere, as in pip's isolated builds, it is pure and the kernels are compiled
on first use.  It says on standard error which of the two it made.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "src"))
from w4afp8.kernels import build  # needs neither torch nor CUDA to be imported


def say(text: str) -> None:
    print(f"w4afp8: {text}", file=sys.stderr, flush=True)


class BuildPy(build_py):
    """The Python files, then the library beside them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            say(build.for_wheel(Path(self.build_lib) / "w4afp8" / "kernels" / build.PACKAGED.name))


class Wheel(bdist_wheel):
    """Compiled first: what was built decides what the wheel is."""

    def run(self) -> None:
        self.run_command("build")
        built = Path(self.get_finalized_command("build_py").build_lib) / "w4afp8" / "kernels" / build.PACKAGED.name
        if built.is_file():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # so that it is installed beside compiled code
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """The library is no Python extension: it loads in every Python 3, through torch's stable ABI."""
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel})
