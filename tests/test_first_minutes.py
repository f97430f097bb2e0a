"""init, doctor and recipe-schema: what a newcomer meets."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_models import save_tiny_model
from sdft import starter
from sdft.benchmarks import OwnDataset
from sdft.checks import Answer
from sdft.data import load_examples
from sdft.errors import DataError, RecipeError
from sdft.pipeline import check_all
from sdft.recipe import load_recipe
from sdft.recipe.files import SHIPPED
from sdft.recipe_schema import recipe_schema
from sdft.visible import HIDDEN


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


CALL = 'get_rates(country="DE", year=2024)'
FENCE = "Here is the code:\n```python\nprint(1)\n```"


def test_init_uses_the_context_and_names_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"question": "Which number?", "context": "The number is five.", "answer": "It is five.", "source": "a\nbook"}
    seen = starter.look(write(Path("mine.jsonl"), [row] * 30))
    assert seen.data["columns"] == {"prompt": "question", "response": "answer", "query": "context"}
    assert seen.examples[0].messages[-1].content == "Which number?\nThe number is five."
    assert seen.left_out == ["source"]
    assert "# not used: source" in starter.written(seen, "some/model", Path("mine.yaml"))


def test_what_init_prints_cannot_drive_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sdft import cli

    row = {"question": "\x1b]0;PWNED\x07\x1b[31m \u202e?", "answer": "A reply in so many words as to be text."}
    write(tmp_path / "mine.jsonl", [row] * 5)
    out = str(tmp_path / "mine.yaml")
    model = str(save_tiny_model(tmp_path / "tiny"))
    capsys.readouterr()  # what saving a model draws
    monkeypatch.setattr(sys, "argv", ["sdft", "init", str(tmp_path / "mine.jsonl"), "--out", out, "--model", model])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr()
    assert done.value.code in (0, None)
    assert "PWNED" in said.out and HIDDEN.search(said.out + said.err) is None


@pytest.mark.parametrize(
    ("row", "kind", "checks", "distill"),
    [
        ({"question": "7 - 9?", "answer": "-2"}, "numbers", ["leak", "degenerate", "number"], "answer"),
        (
            {"question": "7 - 9?", "answer": "We take 9 from 7. The answer is -2."},
            "numbers",
            ["leak", "degenerate", "number"],
            "refer",
        ),
        ({"prompt": "Rates?", "completion": CALL}, "calls", ["leak", "call_ast"], "refer"),
        ({"instruction": "Print 1.", "input": "", "output": FENCE}, "code", ["leak", "code"], "refer"),
        ({"problem": "Add.", "solution": "def add(a, b):\n    return a + b"}, "code", ["leak", "code"], "refer"),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, how are you?"}]},
            "text",
            ["leak", "degenerate"],
            "using",
        ),
        ({"question": "3 + 1?", "answer": 4}, "numbers", ["leak", "degenerate", "number"], "answer"),
        ({"question": "Query?", "answer": "SELECT a FROM t WHERE id = 7;"}, "text", ["leak", "degenerate"], "using"),
        ({"question": "Call?", "answer": '{"name": "f", "to": 7}'}, "text", ["leak", "degenerate"], "using"),
        (
            {"question": "Where?", "answer": "In the book by Springer, on page 12."},
            "text",
            ["leak", "degenerate"],
            "using",
        ),
        (
            {"question": "How?", "answer": "```js\nreturn 3;\n```"},
            "text",
            ["leak", "degenerate"],
            "using",
        ),
        ({"Text": "A fine film.", "Label": "positive"}, "short answers", ["leak", "degenerate", "answer"], "answer"),
    ],
)
def test_init_writes_a_recipe_that_passes_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], kind: str, checks: list[str], distill: str
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = starter.look(write(Path("a file: of mine.jsonl"), [row] * 120))
    assert seen.kind.name == kind
    path = Path("mine.yaml")
    recipe = starter.write(seen, "some/model", path)
    assert check_all(path)[0] == recipe
    assert [check.name for check in recipe.select.checks] == checks
    assert recipe.prompt.distill == distill
    assert recipe.data is not None
    benchmarks = recipe.evaluate.benchmarks
    if seen.held_out:
        assert isinstance(benchmarks[0], OwnDataset)
        assert benchmarks[0].check == recipe.select.checks[-1]
        train, test = load_examples(recipe.data), benchmarks[0].examples()
        assert (len(train), len(test)) == (96, 24)
    assert [b.name for b in benchmarks] == ["dataset", "drift"][kind in ("text", "code") :]
    text = path.read_text(encoding="utf-8")
    assert text.count("#") > 8, "commented"
    assert max(map(len, text.splitlines())) <= 120
    shown = dict(starter.prompts(recipe, seen.examples[0]))
    assert len(shown) == 2
    assert all(seen.examples[0].instruction in text for text in shown.values())


def test_init_leaves_bad_rows_out_and_says_so(tmp_path: Path) -> None:
    good = {"prompt": "Why?", "completion": "Because of the wind from the sea."}
    seen = starter.look(write(tmp_path / "d.jsonl", [good] * 3 + ["{\n", {"prompt": "", "completion": "x"}]))
    recipe = starter.write(seen, "some/model", tmp_path / "mine.yaml")
    assert recipe.data is not None and recipe.data.on_bad_rows == "skip"
    assert "2 rows are no examples" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match="is there already"):
        starter.write(seen, "some/model", tmp_path / "mine.yaml")


def test_init_takes_the_one_file_that_is_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sdft init FILE"):
        starter.only_file(tmp_path)
    write(tmp_path / "one.jsonl", [])
    (tmp_path / "notes.txt").touch()
    assert starter.only_file(tmp_path) == "one.jsonl"
    write(tmp_path / "two.csv", [])
    with pytest.raises(DataError, match=r"one\.jsonl, two\.csv"):
        starter.only_file(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": "x", "b": "y"}], "Of a, b, say: sdft init .* --columns"),
        ([], "no row of it"),
        ([[1]], "no row"),
    ],
)
def test_init_says_what_it_cannot_read(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        starter.look(write(tmp_path / "d.jsonl", rows))


# The schema


@functools.cache
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(recipe_schema())


def valid(tree: Any) -> bool:
    return bool(validator().is_valid(tree))


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: str(path.relative_to(SHIPPED)))
def test_shipped_recipes_meet_the_schema(path: Path) -> None:
    from sdft.recipe.files import Loader

    tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    if "model" in tree or "extends" in tree:
        assert valid(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"trian": {}},
        {"train": {"epoch": 1}},
        {"train": {"epochs": "many"}},
        {"methods": ["sdtf"]},
        {"evaluate": {"benchmarks": ["gsm9k"]}},
        {"evaluate": {"benchmarks": [{"name": "drift", "limt": 3}]}},
        {"select": {"checks": ["nubmer"]}},
        {"extends": 3},
    ],
)
def test_the_schema_refuses_what_check_refuses(tree: dict[str, Any]) -> None:
    assert not valid({"model": "m", "data": {"dataset": "d"}, **tree})
    with pytest.raises(RecipeError):
        load_recipe({"model": "m", "data": {"dataset": "d"}, **tree})


def test_the_schema_explains_keys() -> None:
    schema = recipe_schema()
    train = schema["$defs"]["TrainConfig"]["properties"]
    assert train["max_length"]["description"] == "Tokens of prompt and reply together."
    assert "extends" in schema["properties"]
    assert valid({"extends": "base.yaml", "data": {"limit": 3}})
    assert not valid({"data": {"dataset": "d"}})


def test_init_takes_columns_by_name(tmp_path: Path) -> None:
    rows = [{"q": f"Is film {i} good?", "verdict": ["yes", "no"][i % 2]} for i in range(100)]
    columns = starter.parse_columns("prompt=q, response=verdict")
    seen = starter.look(write(tmp_path / "d.jsonl", rows), columns)
    recipe = starter.write(seen, "some/model", tmp_path / "mine.yaml")
    [test, _] = recipe.evaluate.benchmarks
    assert isinstance(test, OwnDataset) and recipe.data is not None
    assert test.check == Answer(labels=("no", "yes"))
    held_out = {example.id for example in test.examples()}
    assert len(held_out) == 20
    assert not held_out & {example.id for example in load_examples(recipe.data)}
    for text in ("prompt", "prompt=", "=q"):
        with pytest.raises(DataError, match="--columns"):
            starter.look(str(tmp_path / "d.jsonl"), starter.parse_columns(text))
