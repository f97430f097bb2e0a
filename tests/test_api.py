"""The public names, and the stages on plain objects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import example, rewrite, scripted_recipe

EXAMPLES = [example(number) for number in range(10)]
VERBATIM = sdft.PromptConfig(style="verbatim", distill="alpaca_distill_using", train="alpaca")


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(sdft.__all__) == sorted(set(sdft.__all__)) == dir(sdft)
    for name in sdft.__all__:
        value = getattr(sdft, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        sdft.destill  # noqa: B018


def test_type_checkers_see_every_public_name() -> None:
    import ast

    tree = ast.parse(Path(sdft.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(sdft.__all__) - {"__version__"}
    assert (Path(sdft.__file__).parent / "py.typed").exists()


def test_importing_is_cheap() -> None:
    code = "import sys, sdft; print([name for name in sys.modules if name.startswith(('sdft', 'pydantic', 'yaml'))])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "['sdft']\n"


def test_ten_rows_in_a_few_lines() -> None:
    engine = {"name": "scripted", "default": "It is 9.", "replies": {"instruction:\n3 plus": "It is 7."}}
    rewrites = sdft.distill(
        EXAMPLES, model="none", prompt=VERBATIM, engine=engine, candidates=2, checks=["leak", "number"]
    )
    choices = sdft.select(EXAMPLES, rewrites, checks=["leak", "number"])
    assert [choice.example_id for choice in choices] == [item.id for item in EXAMPLES]
    assert {choice.example_id for choice in choices if choice.source == "rewrite"} >= {"e5"}
    assert len(rewrites) == 20 - sum(choice.candidate == 0 for choice in choices)


def test_checks_may_be_names_settings_or_objects() -> None:
    from sdft.checks import Number

    for checks in (["number"], [{"name": "number"}], [Number()]):
        [choice] = sdft.select([EXAMPLES[0]], [rewrite(0, "It is 5.")], checks=checks)
        assert choice.verdict.reason == "number_differs"
    with pytest.raises(sdft.RecipeError, match=r"checks: .*'nubmer'"):
        sdft.select([], [], checks=["nubmer"])


def test_evaluate_gives_predictions_in_order() -> None:
    found = sdft.evaluate({"name": "drift", "limit": 4}, "none", prompt=VERBATIM, engine="scripted")
    assert len(found) == 4
    assert all(prediction.values["reply_words"] > 0 for prediction in found)


def test_train_on_originals_or_on_choices(tmp_path: Path) -> None:
    model = sdft.ModelConfig(name=str(save_tiny_model(tmp_path / "model")), device="cpu", dtype="float32")
    config = sdft.TrainConfig(epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    choices = sdft.select(EXAMPLES[:4], [rewrite(1, "It is 5.")], checks=["number"])
    plain = sdft.train(EXAMPLES[:4], model, tmp_path / "plain", config=config)
    distilled = sdft.train(EXAMPLES[:4], model, tmp_path / "distilled", choices=choices, config=config)
    assert (plain.method, distilled.method, plain.rows) == ("sft", "sdft", 4)
    assert (plain.path / "adapter_config.json").is_file()
    assert distilled.supervised_tokens > plain.supervised_tokens
    with pytest.raises(sdft.DataError, match="example e4: there is no choice for it"):
        sdft.train(EXAMPLES[:5], model, tmp_path / "none", choices=choices, config=config)


def test_a_report_can_be_built_again(tmp_path: Path) -> None:
    result = sdft.run(scripted_recipe(tmp_path))
    result.report.unlink()
    assert sdft.build_report(result.path) == result.report
    assert result.report.is_file()
