"""`sdft eval MODEL`: a model that was not trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import sdft
from helpers_checks import data_file
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from sdft import cli
from sdft.pipeline import check_all
from sdft.recipe import load_recipe
from sdft.untrained import eval_recipe, is_recipe


def model_folder(path: Path) -> Path:
    """What looks like a model."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_the_argument_is_told_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: m\n", encoding="utf-8")
    (tmp_path / "weights.gguf").write_bytes(b"")
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("model: m\n", encoding="utf-8")
    for recipe in ("mine.yaml", "mine", "demo", "reference/gsm8k", str(run)):
        assert is_recipe(recipe), recipe
    for model in ("owner/name", str(model_folder(tmp_path / "models/tiny")), "weights.gguf"):
        assert not is_recipe(model), model


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("gone.yaml", "no such recipe; `sdft list recipes`"),
        ("gone", "neither a recipe, nor a run's folder, nor a model"),
        ("./gone", "neither a recipe"),
        ("empty", "neither a recipe"),
        ("adapter", "sdft eval MODEL --adapter"),
    ],
)
def test_what_is_neither_is_refused(argument: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(sdft.RecipeError, match=said):
        is_recipe(argument)


def test_the_recipe_is_the_shipped_one_for_this_model() -> None:
    recipe, shipped = eval_recipe("owner/name"), load_recipe("eval")
    assert (recipe.path, recipe.methods, recipe.data) == (Path("runs/name"), (), None)
    assert recipe.evaluate == shipped.evaluate and recipe.prompt == shipped.prompt
    adapted = eval_recipe("owner/name", adapter="runs/mine/train/sdft", overrides=["seed=3"])
    assert (adapted.name, adapted.model.adapter, adapted.seed) == ("name-sdft", "runs/mine/train/sdft", 3)


def test_benchmarks_are_named_by_name_or_label_and_limited() -> None:
    recipe = eval_recipe("o/n", benchmarks=["gsm8k", "advbench", "bfcl_simple"], limit=7)
    shown = [(entry.label or entry.name, entry.template, entry.limit) for entry in recipe.evaluate.benchmarks]
    assert shown == [
        ("gsm8k", "math_infer", 7),
        ("advbench_raw", None, 7),
        ("advbench_jailbreak", None, 7),
        ("bfcl_simple", None, 7),
    ]
    [only] = eval_recipe("o/n", benchmarks=["advbench_jailbreak"]).evaluate.benchmarks
    assert only.template_for("chat") == "gcg"
    with pytest.raises(sdft.RecipeError, match="no 'gsm9k'; did you mean 'gsm8k'"):
        eval_recipe("o/n", benchmarks=["gsm9k"])


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["sdft", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


def test_a_model_is_scored_from_the_command_line_and_the_run_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_file("gsm8k/gsm8k_test.json")
    model = save_tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    options = ["--benchmarks", "gsm8k", "--limit", "3", "evaluate.sampling.max_new_tokens=4", "model.device=cpu"]
    assert call(monkeypatch, "eval", model, *options) == 0
    said = capsys.readouterr()
    assert "gsm8k" in said.out and said.out.splitlines()[-1] == "report: runs/tiny/report/report.html"
    run = tmp_path / "runs/tiny"
    assert json.loads((run / "eval/seed/gsm8k/scores.json").read_text(encoding="utf-8"))["n"] == 3
    assert (run / "report/report.html").is_file()
    resolved = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert (resolved["methods"], resolved["data"]) == ([], None) and "extends" not in resolved
    assert call(monkeypatch, "eval", run) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert call(monkeypatch, "distill", run) == 2
    assert "names no data, so there is nothing to distill" in capsys.readouterr().err


def test_options_for_a_model_are_refused_with_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(scripted_recipe(tmp_path)), encoding="utf-8")
    for option in (["--limit", "3"], ["--benchmarks", "drift"], ["--adapter", "x"]):
        assert call(monkeypatch, "eval", path, *option) == 2
        assert f"{option[0]} is for a model" in capsys.readouterr().err
    assert call(monkeypatch, "eval", path) == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"adapter": "./nope"}, r"adapter ./nope: not a PEFT adapter folder, it has no adapter_config\.json"),
        ({"device": "cuda"}, "no cuda device is available here; use model.device=auto"),
    ],
)
def test_an_adapter_or_a_device_that_is_not_there_is_named_before_anything_runs(
    changes: dict[str, str], problem: str
) -> None:
    if changes.get("device") == "cuda" and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    with pytest.raises(sdft.RecipeError, match=problem):
        check_all(
            {
                "model": {"name": "owner/model", **changes},
                "methods": ["sft"],
                "data": {"dataset": "bfcl_simple"},
                "train": {"lora": None},
            }
        )


def test_a_benchmark_that_is_none_is_named_as_it_was_given() -> None:
    with pytest.raises(sdft.RecipeError, match=r"^--benchmarks: no 'gsm8'; did you mean 'gsm8k'\?$"):
        eval_recipe("owner/model", benchmarks=["drift", "gsm8"])
    assert [b.label for b in eval_recipe("owner/model", benchmarks=["advbench_raw"]).evaluate.benchmarks] == [
        "advbench_raw"
    ]
