"""Sweeps: checked first, sharing what settings do not touch, going on where they were stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import contents, scripted_recipe
from sdft.engines import Request, Sampling
from sdft.engines.scripted import ScriptedEngine
from sdft.grid import parse_settings
from sdft.records import Completion, Score
from sdft.report.sweep import SweepPoint, aggregate
from sdft.rundir import read_json, write_json
from sdft.stats import t_interval

FRACTIONS = {"train.distilled_fraction": [0, 0.5, 1]}


def counting(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[Request]:
    """All requests that any scripted engine is given."""
    asked: list[Request] = []
    original = ScriptedEngine.generate

    def generate(self: ScriptedEngine, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        def noted() -> Iterator[Request]:
            for request in requests:
                if len(asked) == fail_after:
                    raise KeyboardInterrupt
                asked.append(request)
                yield request

        yield from original(self, noted(), sampling)

    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    return asked


def trained_recipe(folder: Path) -> dict[str, Any]:
    """Scripted replies, a random model trained on them."""
    save_tiny_model(folder / "model", hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    tree = scripted_recipe(folder, rows=6, methods=["sft", "sdft"])
    tree["model"] = {"name": str(folder / "model"), "device": "cpu", "dtype": "float32"}
    tree["distill"] = {"engine": {"name": "scripted", "default": "It is {seed}."}}
    tree["select"] = {"checks": ["leak"]}
    tree["train"] = {"epochs": 1, "gradient_accumulation_steps": 1, "max_length": 128}
    tree["analyze"] = {"nll": False, "similarity": False}
    return tree


def test_stages_that_the_setting_does_not_touch_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = trained_recipe(tmp_path)
    asked = counting(monkeypatch)
    result = sdft.sweep(tree, FRACTIONS)
    shared = {"data", "distill", "select", "train/sft", "eval/seed", "eval/sft"}
    first, *others = result.runs
    assert shared <= set(first.done)
    for run in others:
        assert set(run.done) == {"train/sdft", "eval/sdft", "compare", "analyze", "report"}
        assert contents(run.path)["distill/rewrites.jsonl"] == contents(first.path)["distill/rewrites.jsonl"]
        assert read_json(run.path / "stages/distill.json")["shared_from"] == first.path.name
    assert len(asked) == 6 + 5 * (1 + 1 + 3)  # rewrites, once; drift's five prompts for seed, sft, and each sdft
    alone = sdft.run({**tree, "name": "alone"}, ["train.distilled_fraction=0.5"]).path
    shared_run = contents(others[0].path)
    for name, body in contents(alone).items():
        if name.startswith(("train/sdft", "eval/")) and "training.json" not in name:
            assert shared_run[name] == body, name


def test_a_run_of_the_recipe_itself_is_taken_from_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = trained_recipe(tmp_path)
    sdft.run(tree)
    asked = counting(monkeypatch)
    result = sdft.sweep(tree, {"train.distilled_fraction": [0, 1]})
    assert len(asked) == 5, "the mix of 1 is the recipe's own"
    assert result.runs[1].done == ("report",)


def test_a_shared_file_is_no_second_name_of_one_that_is_appended_to(tmp_path: Path) -> None:
    result = sdft.sweep(trained_recipe(tmp_path), {"train.distilled_fraction": [0, 1]})
    one, other = (run.path for run in result.runs)
    for path in other.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert path.stat().st_nlink == 1, path
    weights = "train/sft/adapter_model.safetensors"
    assert (one / weights).samefile(other / weights)


def test_interrupted_it_goes_on_and_a_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = scripted_recipe(tmp_path)
    grid = {"evaluate.sampling.temperature": [0.1, 0.2], "seed": [0, 1]}
    with monkeypatch.context() as patch:
        counting(patch, fail_after=40)
        with pytest.raises(KeyboardInterrupt):
            sdft.sweep(tree, grid)
    table = read_json(tmp_path / "runs/run-sweep/sweep.json")
    assert 0 < sum(point["finished"] for point in table["points"]) < 4
    result = sdft.sweep(tree, grid)
    assert all(point.finished for point in result.table.points)
    undisturbed = sdft.sweep({**tree, "name": "other"}, grid)
    assert result.table.scores == undisturbed.table.scores
    asked = counting(monkeypatch)
    assert all(run.done == () for run in sdft.sweep(tree, grid).runs)
    assert asked == []
    wider = sdft.sweep(tree, {**grid, "seed": [0, 1, 2]})
    assert [bool(run.done) for run in wider.runs] == [False, False, True] * 2


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"train.distilled_fraction": [0, 2, "x"]}, ["distilled_fraction=2: ", "distilled_fraction=x: "]),
        ({"train.distiled_fraction": [0, 1]}, ["did you mean 'distilled_fraction'"]),
        ({"seed": [0, 1, 0]}, ["seed=0: the same settings as seed=0"]),
        ({"train.epochs": [1, 1.0]}, ["train.epochs=1.0: the same settings as train.epochs=1"]),
        ({"name": ["a", "b"]}, ["name: each run of a sweep gets its own"]),
        ({"seed": [0, 1], "data.dataset": ["data.jsonl", "no_such.jsonl"]}, ["no_such.jsonl"]),
        ({"seed": []}, ["seed: no values"]),
        ({"distill.temperature": [0, 1], "distill.candidates": [1, 2]}, ["distill.temperature=0", "greedy"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_before_anything_runs(
    tmp_path: Path, grid: dict[str, list[Any]], said: list[str]
) -> None:
    tree = scripted_recipe(tmp_path)
    tree["distill"].pop("candidates")
    with pytest.raises(sdft.RecipeError) as raised:
        sdft.sweep(tree, grid)
    for words in said:
        assert words in str(raised.value)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("data"))


def test_settings_are_parted_at_commas_outside_brackets_and_quotes() -> None:
    grid, overrides = parse_settings(
        ["seed=0,1", "methods=[sft, sdft]", "select.checks=[leak],[leak, number]", 'prompt.system="a, b",none', "x=1"]
    )
    assert grid == {
        "seed": ["0", "1"],
        "select.checks": ["[leak]", "[leak, number]"],
        "prompt.system": ['"a, b"', "none"],
    }
    assert overrides == ["methods=[sft, sdft]", "x=1"]
    with pytest.raises(sdft.RecipeError, match=r"nothing to sweep over: .*train\.distilled_fraction=0,0\.5,1"):
        parse_settings(["seed=0"])
    with pytest.raises(sdft.RecipeError, match="seed: given twice"):
        parse_settings(["seed=0,1", "seed=2,3"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_scores_are_means_over_seeds_with_students_interval(tmp_path: Path, values: list[float]) -> None:
    points = []
    for seed, value in enumerate(values):
        score = Score(
            model="seed", benchmark="gsm8k", metric="accuracy", value=value, n=9, low=0.25, high=0.5, kind="rate"
        )
        body = {"model": "seed", "benchmark": "gsm8k", "label": "gsm8k", "role": "task", "n": 9, "main": "accuracy"}
        write_json(tmp_path / f"r{seed}/eval/seed/gsm8k/scores.json", {**body, "scores": [score.model_dump()]})
        points.append(SweepPoint(settings={"a": "1"}, seed=seed, run=f"r{seed}", finished=True))
    unfinished = SweepPoint(settings={"a": "2"}, seed=0, run="r0", finished=False)
    [found] = aggregate(tmp_path, [*points, unfinished], [])
    assert found.value == pytest.approx(sum(values) / len(values))
    assert found.seeds == list(range(len(values)))
    if len(set(values)) == 1:
        assert (found.low, found.high) == (0.25, 0.5)
    else:
        low, high = t_interval(values)
        assert (found.low, found.high) == (max(0.0, low), min(1.0, high))


def test_the_page_has_table_and_curve_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, name="<b>odd", evaluate={"engine": "scripted", "benchmarks": [
        {"name": "drift", "limit": 5}, {"name": "drift", "label": "again", "limit": 3}]})  # fmt: skip
    result = sdft.sweep(tree, {"evaluate.sampling.top_k": [0, 5], "evaluate.sampling.top_p": [0.5, 1], "seed": [0, 1]})
    html = result.report.read_text(encoding="utf-8")
    assert "http://" not in html and "https://" not in html and "<script" not in html and "<b>" not in html
    words = (result.path / "sweep.md").read_text(encoding="utf-8")
    assert "| evaluate.sampling.top\\_k | evaluate.sampling.top\\_p | Seed |" in words.replace("top_", "top\\_")
    assert words.count("2 seeds") == 8
    assert read_json(result.path / "sweep.json") == result.table.model_dump(mode="json")


def test_the_curve_shows_each_model_at_each_value(tmp_path: Path) -> None:
    tree = trained_recipe(tmp_path)
    tree["evaluate"] = {"engine": "scripted", "benchmarks": [{"name": "bfcl_simple"}]}
    points, scores = [], []
    for fraction in ("0", "1"):
        points.append(SweepPoint(settings={"train.distilled_fraction": fraction}, seed=0, run=fraction, finished=True))
        for model in ("seed", "sft", "sdft"):
            score = Score(
                model=model, benchmark="gsm8k", metric="accuracy", value=0.5, n=9, low=0.25, high=0.75, kind="rate"
            )
            body = {"model": model, "benchmark": "gsm8k", "label": "gsm8k", "role": "task", "n": 9, "main": "accuracy"}
            path = tmp_path / fraction / "eval" / model / "gsm8k/scores.json"
            write_json(path, {**body, "scores": [score.model_dump()]})
    from sdft.report.sweep import Sweep, render_html

    scores = aggregate(tmp_path, points, ["sft", "sdft"])
    html = render_html(Sweep(name="s", keys=["train.distilled_fraction"], seeds=[0], points=points, scores=scores))
    assert html.count("<circle") == 6
    assert "SDFT: 50 (25 to 75)" in html


def test_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = scripted_recipe(tmp_path)
    del tree["name"]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sdft.cli",
        "sweep",
        str(path),
        "evaluate.sampling.top_k=0,5",
        "data.limit=4",
        "-q",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.endswith(f"sweep: {tmp_path}/runs/mine-sweep/sweep.html\n")
    wrong = subprocess.run([*command, "train.epochs=0,-1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "train.epochs=0: " in wrong.stderr and "train.epochs=-1: " in wrong.stderr
