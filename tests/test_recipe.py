"""Recipes: what is refused and how it is said, and how one extends another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.engines import OpenAISettings
from sdft.errors import RecipeError
from sdft.recipe import Recipe, dump_recipe, load_recipe
from sdft.recipe.files import merge

BASE: dict[str, Any] = {"model": "some/model", "data": {"dataset": "gsm8k_train"}}


def problems(tree: dict[str, Any], *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as raised:
        load_recipe({**copy.deepcopy(BASE), **tree}, overrides)
    return raised.value.problems


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"trian": {}}, ["trian: unknown key; did you mean 'train'?"]),
        ({"train": {"epoch": 1}}, ["train.epoch: unknown key; did you mean 'epochs'?"]),
        ({"train": {"lora": {"rank": 8}}}, ["train.lora.rank: unknown key"]),
        ({"train": {"epochs": "many"}}, ["train.epochs: input should be a valid number, not 'many'"]),
        ({"data": {"dataset": "x", "limit": "5"}}, ["data.limit: input should be a valid integer, not '5'"]),
        ({"data": {}}, ["data.dataset: missing"]),
        ({"data": None}, ["methods: sft and sdft train on a dataset, and none is named"]),
        ({"data": None, "trian": {}}, ["methods: sft and sdft train on", "trian: unknown key"]),
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


def write(folder: Path, **texts: str) -> Path:
    """Recipe files; the first is returned."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yaml"


def test_a_recipe_extends_others_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(
        tmp_path, base="name: theirs\nmodel: m\ntrain: {epochs: 9, lora: {r: 4, alpha: 4}}\nmethods: [sft]\nseed: 1\n"
    )
    write(tmp_path, data="data: {dataset: d, limit: 5}\nseed: 2\nselect: {checks: [leak, number]}\n")
    path = write(
        tmp_path / "deep",
        mine="extends: [../base.yaml, ../data.yaml]\ntrain: {epochs: 1, lora: {r: 8}}\nselect: {checks: [call]}\n",
    )
    recipe = load_recipe(path, ["data.limit=6"])
    assert recipe.data is not None and recipe.train.lora is not None
    assert (recipe.name, recipe.model.name, recipe.data.dataset, recipe.data.limit) == ("mine", "m", "d", 6)
    assert (recipe.train.epochs, recipe.train.lora.r, recipe.train.lora.alpha) == (1, 8, 4), "mappings are merged"
    assert [check.name for check in recipe.select.checks] == ["call"], "lists are replaced"
    assert (recipe.methods, recipe.seed) == (("sft",), 2)
    assert "extends" not in dump_recipe(recipe)
    top = write(tmp_path, top="extends: deep/mine.yaml\ntrain: {lora: null}\nmethods: []\ndata: null\n")
    assert (load_recipe(top).train.lora, load_recipe(top).data, load_recipe(top).train.epochs) == (None, None, 1)


def test_a_section_with_another_name_is_another_thing(tmp_path: Path) -> None:
    base = "model: {name: a, dtype: float16, revision: abc}\ndata: {dataset: d}\n"
    write(tmp_path, base=base + "distill: {engine: {name: transformers, max_batch_size: 8}}\n")
    other = load_recipe(write(tmp_path, other="extends: base.yaml\nmodel: b\ndistill: {engine: scripted}\n"))
    assert (other.model.revision, other.model.dtype, other.distill.engine.name) == (None, "auto", "scripted")
    same = load_recipe(write(tmp_path, same="extends: base.yaml\nmodel: {name: a, dtype: float32}\n"))
    assert (same.model.revision, same.model.dtype) == ("abc", "float32")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            {"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: a.yaml"},
            r"a\.yaml → \S*b\.yaml → \S*c\.yaml → \S*a\.yaml: recipes extend one another in a circle",
        ),
        ({"a": "extends: [a.yaml]"}, r"a\.yaml → \S*a\.yaml: recipes extend one another"),
        ({"a": "extends: b.yaml", "b": "extends: gone.yaml"}, r"a\.yaml → \S*b\.yaml → \S*gone\.yaml: there is no"),
        ({"a": "extends: {b: c}"}, r"a\.yaml: extends: the path of a recipe, or a list of them, not"),
        ({"a": "extends: b.yaml", "b": "- x"}, r"b\.yaml: a recipe is a mapping"),
    ],
)
def test_a_base_that_cannot_be_extended_is_named_with_the_way_to_it(
    tmp_path: Path, texts: dict[str, str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, **texts))


def test_two_ways_to_one_base_are_no_circle(tmp_path: Path) -> None:
    write(tmp_path, base="model: m\nmethods: []\n", one="extends: base.yaml\nseed: 1\n", two="extends: base.yaml\n")
    assert load_recipe(write(tmp_path, top="extends: [one.yaml, two.yaml]\n")).seed == 1


def test_a_problem_quotes_the_line_that_it_comes_from(tmp_path: Path) -> None:
    base = "model: m\ntrain: {epochs: many, epoch: 1}\nevaluate:\n  benchmarks:\n    - {name: drift, limt: 3}\n"
    mine = "extends: base.yaml\ndata: {dataset: d, limt: 5}\ndistill:\n  temperature: 0\n  candidates: 2\n"
    path = write(tmp_path, mine=mine, base=base)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, ["train.epochs=[]"])
    found = {problem.partition(": ")[0]: problem.splitlines()[1:] for problem in raised.value.problems}
    assert found.pop("train.epochs") == [], "said on the command line"
    for key, (quote, mark) in found.items():
        assert quote[mark.index("^") :].startswith(key.rpartition(".")[2] if key != "distill" else "candidates"), key
    places = {
        problem.partition(": ")[0]: problem.splitlines()[0].rpartition("(")[2]
        for problem in raised.value.problems
        if problem.splitlines()[1:]
    }
    assert places == {
        "train.epoch": f"{tmp_path}/base.yaml:2:23)",
        "evaluate.benchmarks.0.limt": f"{tmp_path}/base.yaml:5:21)",
        "data.limt": f"{path}:2:20)",
        "distill": f"{path}:5:3)",
    }


def test_what_a_recipe_replaces_is_not_quoted_from_its_base(tmp_path: Path) -> None:
    base = "model: m\nmethods: []\nevaluate: {benchmarks: [{name: drift, limit: 1}]}\n"
    path = write(tmp_path, mine="extends: base.yaml\nevaluate:\n  benchmarks: [drift, gsm9k]\n", base=base)
    with pytest.raises(RecipeError, match=r"gsm8k'\? \(\S*mine\.yaml:3:23\)"):
        load_recipe(path)


def test_long_lines_are_quoted_around_the_column(tmp_path: Path) -> None:
    path = write(tmp_path, mine=f"model: m\nprompt: {{system: {'x' * 200}, trian: plain}}\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, ["methods=[]"])
    _, quote, mark = raised.value.problems[0].splitlines()
    assert quote[mark.index("^") :].startswith("trian: plain")
    assert len(quote) < 80


@given(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.lists(inner)), max_leaves=8
    ).filter(lambda tree: isinstance(tree, dict)),
    st.dictionaries(st.sampled_from("abcd"), st.integers() | st.dictionaries(st.sampled_from("abc"), st.integers())),
)
def test_what_is_on_top_stands_and_what_it_leaves_shines_through(below: Any, above: Any) -> None:
    before = copy.deepcopy((below, above))
    merged = merge(below, above)
    assert (below, above) == before
    assert merge(merged, above) == merged
    assert set(merged) == {*below, *above}
    for key in below.keys() - above.keys():
        assert merged[key] == below[key]
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        assert merged[key] == (merge(below[key], value) if both else value)


def test_one_mistake_hides_no_other(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "model: m\n"
        "data: {dataset: d.jsonl, on_bad_rows: ignore}\n"
        "methods: [sft, dpo, sft]\n"
        "evaluate: {benchmarks: [gsm9k, drift, drift, {name: gsm8k, limt: 3}], expected_gain: x}\n"
        "distill: {candidates: 2, temperature: 0, top_p: 3}\n"
        "train: {epochs: .inf}\n"
        'prompt: {style: chatt, distill: usin, train: "{{ instrution }}"}\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    keys = [problem.partition(": ")[0] for problem in error.value.problems]
    assert sorted(keys) == [
        "data.on_bad_rows", "distill", "distill.top_p", "evaluate.benchmarks", "evaluate.benchmarks.0",
        "evaluate.benchmarks.3.limt", "evaluate.expected_gain", "methods", "methods.1", "prompt.distill",
        "prompt.style", "prompt.train", "prompt.train", "train.epochs",
    ]  # fmt: skip


def test_items_of_lists_keep_their_numbers(tmp_path: Path) -> None:
    """Problems that show only when others are taken out name the place in the file."""
    with pytest.raises(RecipeError) as error:
        humaneval = {"name": "humaneval", "samples": 3, "k": [5], "timeout": -1}
        load_recipe({**BASE, "evaluate": {"benchmarks": ["nope", "drift", humaneval]}})
    keys = [problem.partition(": ")[0] for problem in error.value.problems]
    assert keys == ["evaluate.benchmarks.0", "evaluate.benchmarks.2.timeout", "evaluate.benchmarks.2"]


def test_a_shipped_recipe_can_be_extended_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: reference/gsm8k\ndata: {limit: 5}\n", encoding="utf-8")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.train.epochs, recipe.data and recipe.data.limit) == ("mine", 5, 5)


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
        ("train..epochs=1", "a key has no empty parts"),
        (".epochs=1", "a key has no empty parts"),
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
        (b"model: a\nmodel: b\n", r"recipe\.yaml:2:1: .*key 'model' is given twice"),
        (b"train: &t {lora: *t}\n", r"an alias \(\*name\) stands within what it is an alias of"),
        (b"1: a\nyes: b\n", "1: unknown key"),
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


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("api_key: sk-very-secret-0123456789", "very-secret"),
        ("api_key_env: sk-very-secret-0123456789", "very-secret"),
        ('base_url: "http://u:secretpass@h/v1"', "secretpass"),
        ("apikey: 'plainsecret99'", "plainsecret"),
        ("base_url: http://h/sk-verysecret99/v1", "verysecret"),
        ("base_url: u:secretpass@h/v1", "secretpass"),
        ("extra_body: {api_key: plainsecret99}", "plainsecret"),
        ("extra_body: {metadata: {token: ['plainsecret99']}}", "plainsecret"),
        ("extra_body: {x: [{authorization: Bearer plainsecret99}]}", "plainsecret"),
        ("extra_body: {password: correct plainsecret99}", "plainsecret"),
        ("extra_body: {x: 'Bearer plainsecret99'}", "plainsecret"),
        ("extra_body: {x: [1, hf_plainsecret99]}", "plainsecret"),
        ("extra_body: {x-api-key: {hf_plainsecret99: 1}}", "plainsecret"),
        ("extra_body: sk-plainsecret99", "plainsecret"),
    ],
)
def test_a_key_in_a_recipe_is_refused_and_not_shown(tmp_path: Path, line: str, secret: str) -> None:
    path = tmp_path / "mine.yaml"
    block = f"distill:\n  engine:\n    name: openai\n    {line}\n"
    for text in (block, f"distill: {{engine: {{name: openai, {line}}}}}\n"):
        path.write_text(f"model: some/model\n{text}", encoding="utf-8")
        with pytest.raises(RecipeError) as error:
            load_recipe(path)
        told = str(error.value)
        assert "mine.yaml:" in told and "*****" in told
        assert secret not in told and line.partition(":")[0] in told


def test_fields_that_only_sound_like_keys_are_sent() -> None:
    body = {
        "max_tokens": 5, "top_k": 3, "keyword": "a", "eos_token": "</s>", "stop_token_ids": [2], "author": "me",
        "prompt_cache_key": "run-7", "schema": {"properties": {"password": {"type": "string"}}},
        "text": "The bearer of this token may pass.", "model": "hf-internal-testing/tiny",
    }  # fmt: skip
    server = {"name": "openai", "base_url": "https://sk-gpu-host-1/hf-inference/v1", "extra_body": body}
    recipe = load_recipe({"model": "some/model", "methods": [], "distill": {"engine": server}})
    assert isinstance(recipe.distill.engine, OpenAISettings) and recipe.distill.engine.extra_body == body
