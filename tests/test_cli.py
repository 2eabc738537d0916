"""The command line: every option on purpose, an exit code per kind of failure, JSON that is JSON.

tests/golden/cli.txt is what `python tests/test_cli.py` writes; an option that changes, changes it on purpose.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from command_line import Outcome
from w4afp8 import __version__, errors, recipes
from w4afp8.cli import cli

REPOSITORY = Path(__file__).parent.parent


def describe(command: click.Command, path: str) -> Iterator[str]:
    """Every command with what it takes, from click's own objects: the same text whatever click's layout is."""
    yield f"{path}: {' '.join((command.help or '').split())}"
    for parameter in command.params:
        spelled = ", ".join((*parameter.opts, *parameter.secondary_opts))
        kind = parameter.type
        choices = f" {{{'|'.join(map(str, kind.choices))}}}" if isinstance(kind, click.Choice) else ""
        flag = isinstance(parameter, click.Option) and parameter.is_flag
        words = [spelled + choices + ("" if flag or choices else f" {kind.name.upper()}")]
        words += ["required"] if parameter.required else []
        words += ["repeatable"] if parameter.multiple or parameter.nargs == -1 else []
        if isinstance(parameter, click.Option):
            words += [f"default {parameter.default!r}"] if parameter.show_default else []
            words += [parameter.help or ""]
        yield "    " + "; ".join(filter(None, words))
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield ""
            yield from describe(inner, f"{path} {name}")


def test_every_option_is_there_on_purpose(golden: Path) -> None:
    found = "\n".join(describe(cli, "w4afp8")) + "\n"
    assert found == (golden / "cli.txt").read_text(), (
        "the command line changed; if you meant it: python tests/test_cli.py"
    )


def test_every_command_helps(w4afp8: Callable[..., Outcome]) -> None:
    commands = ((name,) for name in cli.commands)
    for words in ((), *commands, ("recipes", "show")):
        code, out, _ = w4afp8(*words, "--help")
        assert code == 0 and "Usage: w4afp8" in out
        assert w4afp8(*words, "-h")[1] == out
    assert w4afp8("--version")[1].strip().endswith(__version__)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


def test_every_command_speaks_json() -> None:
    """That what it prints then is one JSON document is tested where the command is."""
    for path, command in leaves(cli):
        assert any("--json" in parameter.opts for parameter in command.params), " ".join(path)


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    table = (REPOSITORY / "docs" / "exit-codes.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.W4AFP8Error)]
    real = {kind.exit_code for kind in kinds if kind is not errors.W4AFP8Error}
    assert documented == real | {0, 130}


def test_recipes_are_listed_and_shown(w4afp8: Callable[..., Outcome]) -> None:
    code, text, _ = w4afp8("recipes", "list")
    assert code == 0 and f"{recipes.DEFAULT} (default)" in text
    assert sorted(json.loads(w4afp8("recipes", "list", "--json")[1])) == sorted(recipes.names())
    for name in recipes.names():
        code, text, _ = w4afp8("recipes", "show", name)
        assert code == 0 and "version: 1" in text
        assert json.loads(w4afp8("recipes", "show", name, "--json")[1])["version"] == 1
    code, text, _ = w4afp8("recipes", "show", "rtn", "--set", "calibration.tokens=77")
    assert code == 0 and "tokens: 77" in text


if __name__ == "__main__":
    (Path(__file__).parent / "golden" / "cli.txt").write_text("\n".join(describe(cli, "w4afp8")) + "\n")
