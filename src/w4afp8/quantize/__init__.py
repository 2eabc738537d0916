"""Choosing codes.  A public file here is a method, and the file's name is the method's name in recipes."""

from __future__ import annotations

import sys
from functools import cache

from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from w4afp8 import registry
from w4afp8.errors import RecipeError, raise_all
from w4afp8.quantize._grid import OF_SCHEME
from w4afp8.quantize._method import Method
from w4afp8.recipes._load import explain
from w4afp8.recipes._recipe import MethodChoice, Recipe, Scheme


@cache
def names() -> tuple[str, ...]:
    """Every method."""
    return registry.names(sys.modules[__name__])


def get(name: str) -> type[Method]:
    """The method of that name.  Raises: RecipeError when there is none."""
    found: type[Method] = registry.load(sys.modules[__name__], name, "method").METHOD
    return found


def make(choice: MethodChoice, scheme: Scheme = Scheme.W4AFP8) -> Method:
    """The method that a recipe asks for, its options checked, on the grid of the scheme.

    Raises: RecipeError for an unknown method or option, or a value that does not fit.
    """
    method = get(choice.name)
    try:
        options = method.Options.model_validate(choice.options)
    except PydanticError as error:
        raise_all(explain(error, method.Options), RecipeError, f"options of method {choice.name}")
        raise
    return method(options, OF_SCHEME[scheme])


def resolve(recipe: Recipe) -> tuple[Recipe, Method]:
    """The recipe with every option of its method written out, and the method."""
    method = make(recipe.method, recipe.scheme)
    options: BaseModel = method.options
    choice = MethodChoice(name=recipe.method.name, options=options.model_dump(mode="json"))
    return recipe.model_copy(update={"method": choice}), method
