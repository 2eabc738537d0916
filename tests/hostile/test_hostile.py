"""Whatever a checkpoint holds, a command ends with a typed error, writes nothing, hangs on nothing, needs no memory."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from corpus import CONFIG, CORPUS, INDEX, Hostile, mutations, shard_of
from forks import Forks

from w4afp8 import conversion
from w4afp8.errors import W4AFP8Error
from w4afp8.terminal.inspect_view import inspect_json
from w4afp8.validate import validate

Toys = Callable[[str], tuple[Path, Path]]
CT, SGLANG = "compressed_tensors_w4a8", "sglang_w4afp8"
# command -> what it works on, its words, what it sees, and the exit codes of its refusals
COMMANDS: dict[str, tuple[str, list[str], set[str], set[int]]] = {
    "inspect source": ("source", ["inspect", "IN"], {"headers"}, {3}),
    "inspect": ("output", ["inspect", "IN"], {"headers"}, {3}),
    "convert": ("output", ["convert", "IN", "--format", CT, "-o", "OUT"], {"headers", "values", "files", "scales"},
                {2, 3, 6}),
    "lay out": ("output", ["convert", "IN", "--layout", "sm90", "-o", "OUT"], {"headers", "values", "files", "scales"},
                {2, 3, 6}),
    "quantize": ("source", ["quantize", "--model", "IN", "-o", "OUT", "--set", "calibration.tokens=256"],
                 {"headers", "values", "files"}, {2, 3, 6}),
    "validate": ("output", ["validate", "IN", "--quick"], {"headers", "values", "scales"}, {3, 7}),
    "validate converted": ("converted", ["validate", "IN"], {"headers", "values"}, {3, 7}),
}  # fmt: skip
CONVERT_READS = {"norm not a number"}  # a conversion copies what is no expert as it is, number or not


@pytest.fixture(scope="session")
def sound(quantized_toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source, what was made of it, and what that was converted to, all whole."""
    source, output = quantized_toys(SGLANG)
    converted = tmp_path_factory.mktemp("converted") / "toy"
    conversion.run(conversion.prepare(output, "modelopt_w4a8_awq", converted, 1.0))
    return {"source": source, "output": output, "converted": converted}


def spoiled(sound: Path, folder: Path) -> Path:
    """A copy to damage, without the tool's own record: a stranger's checkpoint.  What says it was converted, stays."""
    shutil.copytree(sound, folder)
    if not (folder / "w4afp8/conversion.json").exists():
        shutil.rmtree(folder / "w4afp8", ignore_errors=True)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name.replace(" ", "-"))
def test_a_hostile_checkpoint_is_refused(
    sound: dict[str, Path], serving: Forks, tmp_path: Path, hostile: Hostile, command: str
) -> None:
    kind, words, sees, codes = COMMANDS[command]
    if hostile.seen_by not in sees or (hostile.seen_by == "scales" and kind == "source"):
        pytest.skip("nothing that this command reads")
    if command in ("convert", "lay out") and hostile.name in CONVERT_READS:
        pytest.skip("carried as it is")
    folder, out = spoiled(sound[kind], tmp_path / "in"), tmp_path / "out"
    hostile.damage(folder)
    before = sorted(path.name for path in folder.iterdir())
    spelled = [{"IN": str(folder), "OUT": str(out)}.get(word, word) for word in words]
    code = serving.run(spelled, tmp_path / "said")
    said = (tmp_path / "said").read_text(errors="replace")
    assert code in codes, (code, said[-3000:])
    assert "Traceback" not in said and "out of memory" not in said
    assert not out.exists(), "something was written"
    assert "error:" in said or command.startswith("validate")
    if not command.startswith("validate"):  # which leaves its verdict
        assert sorted(path.name for path in folder.iterdir()) == before
    assert len(said) < 60_000, "an error for people"


@pytest.mark.parametrize("kind", ["source", "output", "converted"])
def test_the_corpus_spoils_what_is_sound(sound: dict[str, Path], serving: Forks, tmp_path: Path, kind: str) -> None:
    """The same commands pass before the damage."""
    folder = spoiled(sound[kind], tmp_path / "in")
    for name, (on, words, _, _) in COMMANDS.items():
        if on == kind and name != "quantize":
            out = tmp_path / name
            spelled = [{"IN": str(folder), "OUT": str(out)}.get(word, word) for word in words]
            assert serving.run(spelled, tmp_path / "said") == 0, (tmp_path / "said").read_text()


@pytest.mark.parametrize("part", ["header", INDEX, CONFIG])
def test_random_damage_is_survived_or_refused(sound: dict[str, Path], tmp_path: Path, part: str) -> None:
    """Seeded; whatever is not refused as an error of ours is a bug."""
    chance = random.Random(part)
    folder = spoiled(sound["output"], tmp_path / "in")
    path = shard_of(folder) if part == "header" else folder / part
    whole = path.read_bytes()
    length = 8 + struct.unpack("<Q", whole[:8])[0] if part == "header" else len(whole)
    refused = 0
    for number, mutated in enumerate(mutations(whole[:length], chance, 150)):
        path.write_bytes(mutated + whole[length:])
        out = tmp_path / f"out-{number}"
        try:
            inspect_json(folder, tensors=False)
            conversion.prepare(folder, CT, out, 1.0)
        except W4AFP8Error:
            refused += 1
        if number % 10 == 0:
            try:
                assert isinstance(validate(folder, sample=1).passed, bool)
            except W4AFP8Error:
                refused += 1
        assert not out.exists()
    assert refused > 30
    path.write_bytes(whole)
    assert json.dumps(inspect_json(folder, tensors=False))


@pytest.mark.parametrize("part", ["header", INDEX, CONFIG, "w4afp8/conversion.json"])
def test_random_damage_of_a_conversion_is_named(sound: dict[str, Path], tmp_path: Path, part: str) -> None:
    chance = random.Random(part)
    folder = spoiled(sound["converted"], tmp_path / "in")
    path = shard_of(folder) if part == "header" else folder / part
    whole = path.read_bytes()
    length = 8 + struct.unpack("<Q", whole[:8])[0] if part == "header" else len(whole)
    for mutated in mutations(whole[:length], chance, 40):
        path.write_bytes(mutated + whole[length:])
        try:
            report = validate(folder, sound["output"])
            assert report.problems or mutated == whole[:length]
        except W4AFP8Error:
            pass
    path.write_bytes(whole)
    assert validate(folder, sound["output"]).passed
