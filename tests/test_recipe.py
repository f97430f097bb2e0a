"""Recipes: what is refused, how it is said, and that every shipped one parses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.errors import RecipeError
from sdft.recipe import Recipe, dump_recipe, load_recipe

BASE: dict[str, Any] = {"model": "some/model", "data": {"dataset": "gsm8k_train"}}


def problems(tree: dict[str, Any], *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as raised:
        load_recipe({**copy.deepcopy(BASE), **tree}, overrides)
    return raised.value.problems


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_says_what_it_is(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"trian": {}}, ["trian: unknown key; did you mean 'train'?"]),
        ({"train": {"epoch": 1}}, ["train.epoch: unknown key; did you mean 'epochs'?"]),
        ({"train": {"lora": {"rank": 8}}}, ["train.lora.rank: unknown key"]),
        ({"train": {"epochs": "many"}}, ["train.epochs: input should be a valid number, not 'many'"]),
        ({"data": {"dataset": "x", "limit": "5"}}, ["data.limit: input should be a valid integer, not '5'"]),
        ({"data": {}}, ["data.dataset: missing"]),
        ({"methods": ["sft", "sft"]}, ["methods: method 'sft' is named twice"]),
        ({"methods": ["sdtf"]}, ["methods.0: 'sdtf' is none of sft, sdft; did you mean 'sdft'?"]),
        ({"evaluate": {"benchmarks": ["gsm9k"]}}, ["evaluate.benchmarks.0: no 'gsm9k'; did you mean 'gsm8k'?"]),
        ({"evaluate": {"benchmarks": ["drift", "drift"]}}, ["evaluate.benchmarks: 'drift' stands twice"]),
        (
            {"evaluate": {"benchmarks": [{"name": "drift", "limt": 3}]}},
            ["evaluate.benchmarks.0.limt: unknown key; did you mean 'limit'?"],
        ),
        ({"select": {"checks": ["nubmer"]}}, ["select.checks.0: no 'nubmer'; did you mean 'number'?"]),
        ({"distill": {"engine": "scriptd"}}, ["distill.engine: no 'scriptd'; did you mean 'scripted'?"]),
        (
            {"distill": {"engine": {"name": "scripted", "latncy": 1.0}}},
            ["distill.engine.latncy: unknown key; did you mean 'latency'?"],
        ),
        ({"distill": {"candidates": 2, "temperature": 0.0}}, ["candidates: greedy decoding gives the same reply"]),
        ({"prompt": {"style": "chat", "train": "plian"}}, ["prompt.train: "]),
        (
            {
                "prompt": {"style": "verbatim", "train": "alpaca", "distill": "alpaca_distill_using"},
                "evaluate": {"benchmarks": [{"name": "drift", "template": "alpacka"}]},
            },
            ["evaluate.benchmarks.0.template: no template 'alpacka'; did you mean 'alpaca'?"],
        ),
        ({"name": "../elsewhere"}, ["name: a run's name has no slash"]),
        (
            {"trian": {}, "train": {"epochs": "many"}, "prompt": {"train": "plian"}},
            ["trian: unknown key", "train.epochs: input", "prompt.train: "],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_key(tree: dict[str, Any], said: list[str]) -> None:
    found = problems(tree)
    assert len(found) == len(said)
    for start in said:
        assert any(start in problem for problem in found), found


def test_overrides_set_nested_keys_with_yaml_values() -> None:
    recipe = load_recipe(BASE, ["train.epochs=1", "model.device=cpu", "methods=[sft]", "train.learning_rate=1e-5"])
    assert (recipe.train.epochs, recipe.model.device, recipe.model.name) == (1, "cpu", "some/model")
    assert (recipe.methods, recipe.train.learning_rate) == (("sft",), 1e-5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs", "an override has the form key=value"),
        ("=3", "an override has the form key=value"),
        ("train.epochs=[", "not valid YAML"),
        ("methods.0=sft", "has no keys"),
        ("train.epoch=1", "did you mean 'epochs'?"),
    ],
)
def test_an_override_that_makes_no_sense_is_named(override: str, said: str) -> None:
    assert said in problems({"methods": ["sft"]}, override)[0]


def test_a_mapping_that_was_passed_is_left_alone() -> None:
    tree = copy.deepcopy(BASE)
    load_recipe(tree, ["train.epochs=1", "data.limit=3"])
    assert tree == BASE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name: x\nmodel: a: b\n", r"recipe\.yaml:2:\d+: not valid YAML"),
        (b"model: a\nmodel: b\n", "key 'model' is given twice"),
        (b"- a\n", "a recipe is a mapping"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(path)


def test_a_missing_file_and_an_unreadable_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe; `sdft list recipes`"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_a_run_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\ndata: {dataset: d}\n", encoding="utf-8")
    assert load_recipe(path).path == Path("runs/mine")
    assert load_recipe(path, ["name=other", "output_dir=/tmp/x"]).path == Path("/tmp/x/other")


@given(
    epochs=st.floats(min_value=0.1, max_value=9),
    rate=st.floats(min_value=1e-9, max_value=1),
    modules=st.sampled_from(["all-linear", ["q_proj"], ["q_proj", "v_proj"]]),
    system=st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
def test_a_dumped_recipe_reads_back_the_same(epochs: float, rate: float, modules: Any, system: str | None) -> None:
    train = {"epochs": epochs, "learning_rate": rate, "lora": {"target_modules": modules}}
    recipe = load_recipe({**BASE, "train": train, "prompt": {"system": system}})
    import yaml

    again = load_recipe(yaml.safe_load(dump_recipe(recipe)))
    assert isinstance(again, Recipe)
    assert again == recipe
