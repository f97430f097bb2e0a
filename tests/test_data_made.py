"""The datasets reasoning_gym and bfcl_simple."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers_data import data_folder
from sdft.data import DataConfig, load_examples, missing
from sdft.data.bfcl import reference_call
from sdft.errors import DataError
from sdft.records import Example

needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
needs_bfcl = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="needs bfcl-eval")

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def draw(**options: Any) -> list[Example]:
    options = {"task": "chain_sum", "config": SUMS, **options}
    return load_examples(DataConfig(dataset="reasoning_gym", options=options))


def questions(examples: list[Example]) -> set[str]:
    return {example.instruction for example in examples}


@needs_gym
def test_sums_have_their_seed_in_the_id_and_the_right_answer() -> None:
    examples = draw(size=50, seed=1000)
    assert [e.id for e in examples] == [f"chain_sum-{1000 + i}" for i in range(50)]
    for example in examples:
        left, sign, right = example.instruction.removesuffix(" =").split()[-3:]
        assert int(example.reference) == int(left) + int(right) * (1 if sign == "+" else -1)
        assert example.meta["row"] == {"question": example.instruction, "answer": example.reference}
        assert example.model_validate_json(example.model_dump_json()) == example
    assert draw(size=50, seed=1000) == examples
    later = draw(size=10, seed=1020)
    assert [(e.id, e.instruction) for e in later] == [(e.id, e.instruction) for e in examples[20:30]]


@needs_gym
def test_the_tasks_own_scorer_takes_what_is_kept() -> None:
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn("chain_sum")
    for example in draw(size=5):
        entry = {**example.meta["row"], "metadata": example.meta["entry"]}
        assert score(example.reference, entry) == 1.0
        assert score(str(int(example.reference) + 1), entry) < 1.0


@needs_gym
def test_train_and_test_are_disjoint() -> None:
    train = draw(size=1500, seed=0, unique=True)
    plain = draw(size=300, seed=1_000_000)
    assert {e.id for e in train}.isdisjoint(e.id for e in plain)
    assert questions(train) & questions(plain), "a small task asks a question twice, however far the seeds"
    test = draw(size=300, seed=1_000_000, exclude={"seed": 0, "size": 1500})
    assert questions(test).isdisjoint(questions(train))
    assert len(test) > 100
    assert {e.id for e in test} < {e.id for e in plain}, "the others are as they were"
    both = draw(size=300, seed=2_000_000, exclude=[{"seed": 0, "size": 1500}, {"seed": 1_000_000, "size": 300}])
    assert questions(both).isdisjoint(questions(train) | questions(plain))


@needs_gym
def test_unique_leaves_out_repeated_questions() -> None:
    small = {**SUMS, "max_digits": 1}
    repeated, unique = draw(size=300, config=small), draw(size=300, config=small, unique=True)
    assert len(questions(repeated)) < len(repeated)
    assert len(questions(unique)) == len(unique) == len(questions(repeated))


@needs_gym
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "chain_sun"}, "did you mean 'chain_sum'"),
        ({"sise": 3}, "data.options.sise: unknown key; did you mean 'size'"),
        ({"config": {"min_term": 2}}, "no setting 'min_term'; did you mean 'min_terms'"),
        ({"config": {"size": 2}}, "no setting 'size'"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "refuses its settings"),
        ({"size": 0}, "data.options.size"),
        ({"seed": "x"}, "data.options.seed"),
        ({"exclude": {"seed": 1}}, "data.options.exclude.0.size"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        draw(**{"size": 3, **options})
    assert words in str(error.value)


@needs_gym
def test_a_generated_dataset_is_sliced_and_given_a_system_text_like_any_other() -> None:
    config = DataConfig(
        dataset="reasoning_gym", options={"task": "chain_sum", "size": 10}, split="train[-4:]", limit=2, system="Hi."
    )
    examples = load_examples(config)
    assert [e.id for e in examples] == ["chain_sum-6", "chain_sum-7"]
    assert all(e.system == "Hi." for e in examples)
    with pytest.raises(DataError, match="no split 'test'"):
        load_examples(config.model_copy(update={"split": "test"}))


def bfcl(part: str) -> list[Example]:
    return load_examples(DataConfig(dataset="bfcl_simple", options={"part": part}))


@needs_bfcl
def test_bfcl_is_read_without_importing_its_package() -> None:
    code = (
        "import sys\nfrom sdft.data import DataConfig, load_examples\n"
        "print(len(load_examples(DataConfig(dataset='bfcl_simple'))), 'bfcl_eval' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "False"]


@needs_bfcl
def test_bfcl_parts_are_fixed_and_disjoint() -> None:
    parts = {part: [e.id for e in bfcl(part)] for part in ("train", "dev", "test")}
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 240, "dev": 60, "test": 100}
    together = [name for ids in parts.values() for name in ids]
    assert sorted(together) == sorted(e.id for e in bfcl("all")) and len(set(together)) == 400


@needs_bfcl
def test_bfcl_prompt_and_reference() -> None:
    first = bfcl("all")[0]
    assert first.id == "simple_python_0"
    assert first.instruction == (
        "Construct a function call to answer the given question using keyword arguments based on the provided "
        "specifications:\n\nQuestion: Find the area of a triangle with a base of 10 units and height of 5 units.\n\n"
        "Function to be used: calculate_triangle_area\n"
        "Description: Calculate the area of a triangle given its base and height.\nParameters:\n"
        "1. base (type: integer) - The base of the triangle.\n2. height (type: integer) - The height of the triangle.\n"
        "3. unit (type: string) - The unit of measure (defaults to 'units' if not specified)\n"
        "Required: [base, height]\n\nFormat your response as a single string using keyword arguments."
    )
    assert first.reference == "calculate_triangle_area(base=10, height=5)"
    assert first.meta["accepted"] == {
        "name": "calculate_triangle_area",
        "arguments": {"base": [10], "height": [5], "unit": ["units", ""]},
        "required": ["base", "height"],
    }


@needs_bfcl
def test_every_bfcl_reference_is_a_call_whose_values_are_accepted() -> None:
    for example in bfcl("all"):
        call = ast.parse(example.reference, mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        accepted = example.meta["accepted"]
        assert ast.unparse(call.func) == accepted["name"]
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        assert set(accepted["required"]) <= given.keys()
        for name, value in given.items():
            assert value != "" and name in accepted["arguments"]
            if not isinstance(value, dict) and not (
                isinstance(value, list) and any(isinstance(v, dict) for v in value)
            ):
                assert value in accepted["arguments"][name]


def test_a_reference_call_takes_first_values_and_leaves_optional_ones_out() -> None:
    arguments = {"a": ["", 2.0], "b": ["x", ""], "c": [True], "d": [{"k": [1, 2], "l": ["", "z"]}]}
    assert reference_call("m.f", arguments, ["a"]) == "m.f(a=2.0, c=True, d={'k': 1})"


def test_bfcl_reads_the_plain_file_where_the_package_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    data_folder("bench/bfcl/simple_python.jsonl")
    with_package = bfcl("all") if importlib.util.find_spec("bfcl_eval") else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plain = bfcl("all")
    assert len(plain) == 400
    assert with_package is None or plain == with_package


def test_missing_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("SDFT_DATA_DIR", str(tmp_path))
    gym = DataConfig(dataset="reasoning_gym", options={"task": "chain_sum", "size": 1})
    assert "pip install reasoning-gym" in str(missing(gym))
    assert "bench/bfcl/simple_python.jsonl" in str(missing(DataConfig(dataset="bfcl_simple")))
    with pytest.raises(DataError, match="bfcl-eval"):
        bfcl("all")
    with pytest.raises(DataError, match="did you mean 'part'"):
        load_examples(DataConfig(dataset="bfcl_simple", options={"parts": "all"}))
