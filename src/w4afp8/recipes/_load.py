"""From a name or file and `--set key=value` to a Recipe, every mistake named at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError as PydanticError

from w4afp8 import recipes
from w4afp8.errors import RecipeError, raise_all
from w4afp8.recipes._recipe import Recipe
from w4afp8.registry import did_you_mean


def load(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """A recipe by name or path, with overrides like `calibration.tokens=8192`.

    Raises: RecipeError for an unknown name, broken YAML, unknown keys and values that do not fit.
    """
    content = _content(name_or_file)
    for setting in settings:
        _override(content, setting)
    return build(content, f"recipe {name_or_file}")


def build(content: Mapping[str, Any], origin: str) -> Recipe:
    """Check a recipe's content.  Raises: RecipeError listing every problem."""
    try:
        return Recipe.model_validate(content)
    except PydanticError as error:
        raise_all(explain(error, Recipe), RecipeError, origin)
        raise


def explain(error: PydanticError, model: type[Any]) -> list[str]:
    """pydantic's findings as sentences: the key, what was found, what was expected."""
    lines = []
    for found in error.errors(include_url=False):
        key = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            known = _keys_beside(model, found["loc"])
            hint = did_you_mean(str(found["loc"][-1]), known)
            lines.append(f"unknown key {key!r}{hint}; known here: {', '.join(known)}")
        else:
            lines.append(f"{key}: found {found['input']!r}; {found['msg']}")
    return lines


def _keys_beside(model: type[Any], location: tuple[int | str, ...]) -> tuple[str, ...]:
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return tuple(model.model_fields)


def _content(name_or_file: str) -> dict[str, Any]:
    path = Path(name_or_file)
    if name_or_file in recipes.names():
        path = recipes.HERE / f"{name_or_file}.yaml"
    elif not path.is_file():
        hint = did_you_mean(name_or_file, recipes.names())
        raise RecipeError(
            f"no recipe {name_or_file!r}{hint}; give a file or one of: {', '.join(recipes.names())} "
            "(`w4afp8 recipes list` describes them)"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: holds a {type(content).__name__}, expected keys and values")
    return content


def _override(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting!r}: expected key=value, for example calibration.tokens=8192")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {setting!r}: the value is not valid YAML: {error}") from error
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {setting!r}: {part} is no section")
    content[last] = value


def render(recipe: Recipe) -> str:
    """The recipe as it was understood, as YAML that `load` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
