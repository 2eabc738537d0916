"""The house rules, walked: no import climbs a floor, no file grows without end, nothing happens on import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "w4afp8"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# The floors, lowest first.  An import points to a lower floor, or inside one floor from right to left.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "events", "registry"),
    ("numerics", "checkpoint"),
    ("formats", "families", "recipes"),
    ("calibration", "kernels", "layouts", "model"),
    ("measure", "quantize"),
    ("convert", "validate", "evaluate", "report", "card"),
    ("hub", "record", "relayout", "pipeline", "conversion", "probe", "synthetic", "doctor"),
    ("terminal",),
    ("commands", "cli"),
)
# What proves weights shares no code with what makes them, so no bug of one hides in the other.
APART = {"validate": ("quantize", "convert"), "evaluate": ("quantize", "convert")}
LARGEST_FILE = 300


def place(part: str) -> tuple[int, int]:
    """(floor, place on it) of a part of the package; a part that stands nowhere fails the test."""
    for floor, parts in enumerate(FLOORS):
        if part in parts:
            return floor, parts.index(part)
    raise AssertionError(f"src/w4afp8/{part} stands on no floor; give it one in FLOORS and in docs/house.md")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of everything that a file imports, wherever it stands; names from `import from` too."""
    package = ("w4afp8", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def parts_imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of the package) of everything of ours that a file imports."""
    for line, module in imports(path):
        names = module.split(".")
        if names[0] != "w4afp8" or len(names) < 2:
            continue
        known = (PACKAGE / names[1]).is_dir() or (PACKAGE / f"{names[1]}.py").is_file()
        yield line, names[1] if known else "_version"  # `from w4afp8 import __version__`


def test_the_walker_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "numerics").mkdir()
    for name in ("errors", "cli", "quantize", "hub"):
        (tmp_path / f"{name}.py").touch()
    inside = tmp_path / "numerics" / "a.py"
    inside.write_text(
        "import w4afp8.cli\nfrom w4afp8 import errors, __version__\nfrom w4afp8.quantize import x\nimport torch\n"
        "def f():\n    from w4afp8 import hub\nfrom .b import c\nfrom ..cli import d\nfrom .. import hub\n"
    )
    found = sorted(parts_imported(inside))
    assert found == [(1, "cli"), (2, "_version"), (2, "errors"), (3, "quantize"), (6, "hub"), (7, "numerics"),
                     (8, "cli"), (9, "hub")]  # fmt: skip


def test_no_import_climbs() -> None:
    climbing = []
    for path in SOURCES:
        here = part_of(path)
        if here == "__init__":
            continue
        for line, other in parts_imported(path):
            if other == here:
                continue
            (floor, spot), (other_floor, other_spot) = place(here), place(other)
            if other_floor > floor or (other_floor == floor and other_spot >= spot):
                climbing.append(
                    f"{path.relative_to(PACKAGE.parent)}:{line}: {here} ({floor}) imports {other} ({other_floor})"
                )
    assert not climbing, "an import points up:\n" + "\n".join(climbing)


def test_every_part_stands_on_exactly_one_floor() -> None:
    parts = [part for floor in FLOORS for part in floor]
    assert len(parts) == len(set(parts))
    here = {part_of(path) for path in SOURCES} - {"__init__"}
    assert here == set(parts), "FLOORS and src/w4afp8 disagree"


def test_the_documented_floors_are_these() -> None:
    table = (PACKAGE.parent.parent / "docs" / "house.md").read_text()
    documented: dict[int, set[str]] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]*) \|", table, re.M):
        documented.setdefault(int(floor), set()).update(room.strip("/") for room in re.findall(r"`([^`]+)`", rooms))
    assert documented == {floor: set(parts) - {"_version"} for floor, parts in enumerate(FLOORS)}


def test_what_proves_is_apart_from_what_makes() -> None:
    mixed = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: imports {other}"
        for part, forbidden in APART.items()
        for path in SOURCES
        if part_of(path) == part
        for line, other in parts_imported(path)
        if other in forbidden
    ]
    assert not mixed, "\n".join(mixed)


def test_transformers_has_one_door() -> None:
    doors = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        for _, name in imports(path)
        if name.split(".")[0] == "transformers"
    }
    assert doors <= {"calibration/tokens.py"}


def test_the_network_has_one_door() -> None:
    network = ("huggingface_hub", "requests", "urllib", "http", "socket", "httpx")
    doors = {
        str(path.relative_to(PACKAGE)) for path in SOURCES for _, name in imports(path) if name.split(".")[0] in network
    }
    assert {door.split("/")[0] for door in doors} <= {"hub"}


@pytest.mark.parametrize("path", (*SOURCES, *TESTS), ids=lambda p: str(p.relative_to(PACKAGE.parent.parent)))
def test_a_file_has_one_subject(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LARGEST_FILE, f"{lines} lines: what is the second subject?"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"
    assert path.name not in ("utils.py", "helpers.py", "common.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_path_of_this_machine_stands_in_the_source(path: Path) -> None:
    found = re.findall(r"""["'\s(](?:/home|/root|/work|/tmp|/Users|/data|/mnt|/opt)/?\w*""", path.read_text())
    assert not found


def test_nothing_happens_on_import() -> None:
    """No CUDA context, no transformers, no network library, no file read outside: in a process of its own."""
    modules = [".".join(("w4afp8", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in SOURCES]
    modules = [m.removesuffix(".__init__") for m in modules if "csrc" not in m]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized(), 'CUDA was initialised'\n"
        "assert 'transformers' not in sys.modules, 'transformers was imported'\n"
        "assert 'huggingface_hub' not in sys.modules, 'huggingface_hub was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_line_starts_without_torch() -> None:
    """`--help` answers at once."""
    program = "import sys, w4afp8.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
