"""The shipped recipes: all resolve, go by their bare names, and hold the reference's settings to the letter."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sdft.data import registered
from sdft.order import plan
from sdft.recipe import load_recipe
from sdft.recipe.files import recipe_files

ROOT = Path(__file__).parents[1]
REFERENCE = {
    # dataset        rows  epochs  distillation             train     infer          checks
    "gsm8k": (7473, 5, "gsm8k_distill", "gsm8k", "gsm8k_infer", ("leak", "number")),
    "openfunction": (2211, 5, "alpaca_distill_refer", "alpaca", None, ("leak", "call")),
    "magicoder": (2000, 2, "alpaca_distill_refer", "alpaca", None, ("leak", "code")),
    "alpaca": (2000, 2, "alpaca_distill_using", "alpaca", None, ("leak",)),
    "dolly": (2000, 2, "alpaca_distill_using", "alpaca", None, ("leak",)),
    "lima": (1029, 2, "alpaca_distill_using", "alpaca", None, ("leak",)),
    "openhermes": (20000, 2, "alpaca_distill_using", "alpaca", None, ("leak",)),
}
DECODING = {"temperature": 0.95, "top_p": 0.7, "top_k": 50, "max_new_tokens": 512}
TRAIN = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0,
    "weight_decay": 0,
    "max_grad_norm": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_length": 1024,
    "on_long": "truncate",
    "packing": False,
    "bf16": True,
    "lora": {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ("q_proj", "v_proj")},
}
BENCHMARKS = {  # label → template
    "gsm8k": "gsm8k_infer",
    "multiarith": "gsm8k_infer",
    "openfunction": "alpaca",
    "advbench_raw": "alpaca",
    "advbench_jailbreak": "alpaca_gcg",
    "alpaca_eval": "alpaca",
    "humaneval": "octocoder",
    "knowledge": None,
}
LLAMA3 = {
    "gsm8k": ("llama3_gsm8k_distill", "llama3_gsm8k", "llama3_gsm8k_infer", "llama3_gsm8k_infer"),
    "openfunction": ("alpaca_distill_refer", "alpaca", None, "llama3_gsm8k_infer"),
    "magicoder": ("alpaca_distill_refer", "alpaca", None, "gsm8k_infer"),
}


def templates_of(recipe: Any) -> dict[str, str | None]:
    return {entry.label or entry.name: entry.template_for("verbatim") for entry in recipe.evaluate.benchmarks}


@pytest.mark.parametrize("name", recipe_files())
def test_every_shipped_recipe_resolves_and_says_what_it_is(name: str) -> None:
    path = recipe_files()[name]
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert plan(recipe)
    assert bool(recipe.data) == bool(recipe.methods)


def test_no_two_recipes_share_a_run_folder() -> None:
    folders = [load_recipe(path).path for path in recipe_files().values()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_references_settings_to_the_letter(name: str) -> None:
    rows, epochs, distill, train, infer, checks = REFERENCE[name]
    recipe = load_recipe(f"reference/{name}")
    assert (recipe.model.name, recipe.model.dtype) == ("meta-llama/Llama-2-7b-chat-hf", "float16")
    assert recipe.data is not None and recipe.data.dataset == f"{name}_train" and recipe.data.limit is None
    assert registered()[recipe.data.dataset].rows == rows
    prompt = recipe.prompt
    assert (prompt.style, prompt.distill, prompt.train, prompt.infer) == ("verbatim", distill, train, infer)
    assert (prompt.system, prompt.max_prompt_tokens) == (None, None)
    assert recipe.distill.sampling.model_dump() == DECODING
    assert recipe.distill.candidates == 1
    assert tuple(check.name for check in recipe.select.checks) == checks
    assert recipe.select.keep_truncated
    settings = recipe.train.model_dump()
    assert settings["epochs"] == epochs
    assert {key: settings[key] for key in TRAIN} == TRAIN
    assert recipe.methods == ("sft", "sdft")
    assert recipe.evaluate.sampling.model_dump() == DECODING
    found = templates_of(recipe)
    assert {label: found.get(label) for label in BENCHMARKS} == BENCHMARKS
    named = [entry for entry in recipe.evaluate.benchmarks if (entry.label or entry.name) in BENCHMARKS]
    assert all(entry.limit is None for entry in named)
    assert {entry.name for entry in named if entry.sampling is not None} == {"humaneval"}
    humaneval = next(entry for entry in named if entry.name == "humaneval")
    assert (humaneval.sampling.temperature, humaneval.sampling.max_new_tokens, humaneval.samples) == (0, 2048, 1)
    knowledge = next(entry for entry in named if entry.name == "knowledge")
    assert not any(knowledge.num_fewshot.values())
    assert recipe.analyze.rows is None


@pytest.mark.parametrize("name", LLAMA3)
def test_the_references_settings_on_llama_3(name: str) -> None:
    distill, train, infer, maths = LLAMA3[name]
    recipe, base = load_recipe(f"reference/llama3/{name}"), load_recipe(f"reference/{name}")
    assert (recipe.model.name, recipe.model.dtype) == ("meta-llama/Meta-Llama-3-8B-Instruct", "float16")
    assert (recipe.prompt.distill, recipe.prompt.train, recipe.prompt.infer) == (distill, train, infer)
    assert templates_of(recipe) == templates_of(base) | {"gsm8k": maths, "multiarith": maths}
    for section in ("data", "distill", "select", "train", "methods", "analyze"):
        assert getattr(recipe, section) == getattr(base, section)
    mine, theirs = ({e.label or e.name: e.sampling for e in r.evaluate.benchmarks} for r in (recipe, base))
    assert mine == theirs


def test_the_seed_is_measured_as_the_tuned_models_are() -> None:
    seed, tuned = load_recipe("reference/seed"), load_recipe("reference/gsm8k")
    assert (seed.data, seed.methods) == (None, ())
    assert (seed.model, seed.evaluate) == (tuned.model, tuned.evaluate)
    assert [stage.name for stage in plan(seed)] == ["eval/seed", "compare", "report"]


@pytest.mark.parametrize("name", REFERENCE)
def test_the_same_tasks_in_a_models_own_chat_template(name: str) -> None:
    recipe = load_recipe(f"chat/{name}", ["model=some/model"])
    assert recipe.data == load_recipe(f"reference/{name}").data
    assert (recipe.prompt.style, recipe.prompt.train, recipe.model.name) == ("chat", "plain", "some/model")
    checks = {check.name for check in recipe.select.checks}
    assert {"leak", "degenerate"} <= checks
    assert recipe.distill.candidates > 1


def test_recipes_go_by_bare_names_and_ones_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference/gsm8k").mkdir(parents=True)  # a folder of that name is no run
    assert load_recipe("reference/gsm8k").name == "gsm8k"
    assert load_recipe("demo").model == load_recipe("demo.yaml").model
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text("model: mine\nmethods: []\n", encoding="utf-8")
    assert load_recipe("demo").model.name == "mine"
    (tmp_path / "demo.yaml").write_text("model: here\nmethods: []\n", encoding="utf-8")
    assert load_recipe("demo").model.name == "here"
    assert set(recipe_files()) > {"demo", "eval", "reference/llama3/gsm8k"}
    assert recipe_files()["demo"] == Path("recipes/demo.yaml")
    assert not [name for name in recipe_files() if name.endswith("base")]


def test_a_wheel_carries_the_recipes(tmp_path: Path) -> None:
    from importlib.metadata import version

    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs the setuptools that pyproject.toml asks for")
    copy = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "src", copy / "src", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    shutil.copytree(ROOT / "recipes", copy / "recipes")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    said = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(copy / said.stdout.splitlines()[-1]) as wheel:
        inside = {name.removeprefix("sdft/") for name in wheel.namelist()}
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("**/*.yaml")}
    assert own and own <= inside
