"""Recipes: strict, every mistake named, and what was understood can be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError as PydanticError

from w4afp8 import families, quantize, recipes
from w4afp8.errors import RecipeError
from w4afp8.recipes._load import build, load, render
from w4afp8.recipes._recipe import Mtp, Recipe, Survey, matches_pattern


def stems(config: dict[str, Any]) -> list[str]:
    family = families.of(config)
    return [item.stem for item in family.expected(family.dimensions(config)).values() if item.matrix]


@pytest.mark.parametrize("name", recipes.names())
def test_a_shipped_recipe_loads_resolves_and_means_the_experts(name: str, miniature_config: dict[str, Any]) -> None:
    recipe, method = quantize.resolve(load(name))
    assert recipe.about, "a recipe says what it is for"
    assert recipe.version == 1
    assert isinstance(method, quantize.get(recipe.method.name))
    chosen = recipe.chosen(stems(miniature_config))
    assert chosen == {s for s in stems(miniature_config) if ".mlp.experts." in s}


@pytest.mark.parametrize("name", recipes.names())
def test_what_was_understood_is_read_back(name: str, tmp_path: Path) -> None:
    recipe, _ = quantize.resolve(load(name, ["calibration.seed=7", "mtp=drop"]))
    path = tmp_path / "recipe.yaml"
    path.write_text(render(recipe))
    again, _ = quantize.resolve(load(str(path)))
    assert again == recipe
    assert render(again) == render(recipe)


def test_the_default_exists() -> None:
    assert recipes.DEFAULT in recipes.names()


@given(tokens=st.integers(1, 99), seed=st.integers(-5, 2**40), gb=st.floats(1e-6, 1e4), mtp=st.sampled_from(list(Mtp)),
       survey=st.sampled_from(list(Survey)), data=st.lists(st.text(min_size=1), min_size=1, max_size=3))  # fmt: skip
def test_any_recipe_survives_its_rendering(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    seed: int,
    gb: float,
    mtp: Mtp,
    survey: Survey,
    data: list[str],
) -> None:
    recipe = build(
        {"calibration": {"tokens": tokens, "seed": seed, "data": data}, "output": {"shard_gb": gb}, "mtp": mtp.value,
         "compute": {"survey": survey.value}}, "x")  # fmt: skip
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(render(recipe), encoding="utf-8")
    assert load(str(path)) == recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"metod": {"name": "rtn"}}, r"unknown key 'metod' \(did you mean 'method'\?\); known here: version"),
        ({"calibration": {"token": 1}}, r"unknown key 'calibration.token' \(did you mean 'tokens'\?\)"),
        ({"method": {"nam": "rtn"}}, "unknown key 'method.nam'"),
        ({"method": {"name": "rtn"}, "xyzzy": 1}, "unknown key 'xyzzy'; known here"),
        ({"version": 2}, "version: found 2"),
        ({"version": "1"}, "version: found '1'"),
        ({"scheme": "W4A16"}, "scheme: found 'W4A16'"),
        ({"calibration": {"tokens": "many"}}, "calibration.tokens: found 'many'"),
        ({"calibration": {"tokens": "64"}}, "calibration.tokens: found '64'"),
        ({"calibration": {"tokens": 0}}, "calibration.tokens: found 0"),
        ({"calibration": {"tokens": 1.5}}, "calibration.tokens: found 1.5"),
        ({"calibration": {"tokens": True}}, "calibration.tokens: found True"),
        ({"calibration": {"sequence": 1}}, "calibration.sequence: found 1"),
        ({"calibration": {"data": []}}, "calibration.data"),
        ({"calibration": {"data": "x.jsonl"}}, "calibration.data"),
        ({"calibration": None}, "calibration: found None"),
        ({"calibration": [1]}, "calibration"),
        ({"mtp": "keep"}, "mtp: found 'keep'"),
        ({"activations": {"headroom": 0.5}}, "activations.headroom: found 0.5"),
        ({"activations": {"headroom": float("nan")}}, "activations.headroom"),
        ({"activations": {"headroom": float("inf")}}, "activations.headroom"),
        ({"output": {"shard_gb": 0}}, "output.shard_gb: found 0"),
        ({"output": {"shard_gb": float("inf")}}, "output.shard_gb"),
        ({"coverage": {"min_tokens": -1}}, "coverage.min_tokens"),
        ({"coverage": {"allow_cold": "yes"}}, "coverage.allow_cold"),
        ({"targets": []}, "targets"),
        ({"targets": ["re:("]}, r"'re:\(' is no regular expression"),
        ({"ignore": [3]}, "ignore"),
        ({"compute": {"survey": "some"}}, "compute.survey: found 'some'"),
        ({"compute": {"threads": -1}}, "compute.threads"),
    ],
)
def test_a_mistake_is_named(content: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        build(content, "recipe x.yaml")
    assert str(caught.value).startswith("recipe x.yaml: ")
    assert caught.value.exit_code == 2


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(RecipeError, match="3 problems") as caught:
        build({"metod": 1, "calibration": {"tokens": 0}, "mtp": "no"}, "x")
    assert all(word in str(caught.value) for word in ("metod", "calibration.tokens", "mtp"))


@pytest.mark.parametrize(
    ("content", "says"),
    [("a: [", "not valid YAML"), ("- 1", "holds a list"), ("", "holds a NoneType"), ("x", "holds a str"),
     ("!!python/object/apply:os.system ['true']", "not valid YAML"), ("a: 1\n\tb: 2", "not valid YAML")],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=says) as caught:
        load(str(path))
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load(str(tmp_path / "mine.yaml"))


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe 'balance' \(did you mean 'balanced'\?\); give a file or one of: "
    ):
        load("balance")
    with pytest.raises(RecipeError, match=r"no recipe 'there/is/none.yaml'"):
        load("there/is/none.yaml")


def test_settings_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: rtn}\ncalibration: {tokens: 5}\n")
    recipe = load(str(path), ["calibration.tokens=9", "calibration.data=[a.txt, b.txt]", "coverage.allow_cold=true",
                              "about='a: b'", "calibration.tokens=10"])  # fmt: skip
    assert recipe.calibration.tokens == 10
    assert recipe.calibration.data == ("a.txt", "b.txt")
    assert recipe.coverage.allow_cold is True
    assert path.read_text() == "method: {name: rtn}\ncalibration: {tokens: 5}\n"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("calibration.tokens", "expected key=value"),
        ("=3", "expected key=value"),
        ("", "expected key=value"),
        ("calibration.tokns=3", r"unknown key 'calibration.tokns' \(did you mean 'tokens'"),
        ("calibration.tokens=", "calibration.tokens: found None"),
        ("calibration.tokens=x", "calibration.tokens: found 'x'"),
        ("calibration.tokens=[", "not valid YAML"),
        ("version.x=3", "version is no section"),
        ("method.name.x=3", "name is no section"),
        ("nothing.at.all=3", "unknown key 'nothing'"),
        (".=3", "unknown key ''"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load("rtn", [setting])


def test_a_method_checks_its_own_options() -> None:
    with pytest.raises(RecipeError, match=r"unknown method 'awk'.*did you mean 'awq'"):
        quantize.resolve(build({"method": {"name": "awk"}}, "x"))
    with pytest.raises(RecipeError, match=r"options of method awq: unknown key 'fold_nrm' \(did you mean 'fold_norm'"):
        quantize.resolve(build({"method": {"name": "awq", "options": {"fold_nrm": True}}}, "x"))
    with pytest.raises(RecipeError, match="fold_norm: found 'yes'"):
        quantize.resolve(build({"method": {"name": "awq", "options": {"fold_norm": "yes"}}}, "x"))
    with pytest.raises(RecipeError, match="unknown key 'x'"):
        quantize.resolve(build({"method": {"name": "rtn", "options": {"x": 1}}}, "x"))


@pytest.mark.parametrize("name", quantize.names())
def test_resolving_writes_every_option_out(name: str) -> None:
    recipe, method = quantize.resolve(build({"method": {"name": name}}, "x"))
    assert recipe.method.options == method.options.model_dump(mode="json")
    assert quantize.resolve(recipe)[0] == recipe


def test_a_recipe_is_frozen() -> None:
    recipe = load("rtn")
    with pytest.raises(PydanticError):
        recipe.about = "x"  # type: ignore[misc]


def test_patterns_are_exact_names_or_whole_regular_expressions() -> None:
    assert matches_pattern("a.b", "a.b") and not matches_pattern("a.b", "axb") and not matches_pattern("a", "a.b")
    assert matches_pattern("re:a.b", "axb") and not matches_pattern("re:a", "ab") and matches_pattern("re:a.*", "ab")
    names = ["a.1", "a.2", "b.1"]
    assert Recipe(targets=("re:.*",), ignore=("a.2",)).chosen(names) == {"a.1", "b.1"}
    with pytest.raises(RecipeError, match="2 problems") as caught:
        Recipe(targets=("re:a.*", "re:c.*"), ignore=("b.2",)).chosen(names)
    assert "targets: 're:c.*' matches none of 3 matrices" in str(caught.value)
    assert "ignore: 'b.2' matches none of 3 matrices" in str(caught.value)
