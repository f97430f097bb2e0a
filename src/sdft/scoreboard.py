"""The scoreboard of a run in a terminal: 80 columns."""

from __future__ import annotations

from pathlib import Path

from sdft.console import Console
from sdft.order import SEED
from sdft.pipeline import RunResult
from sdft.recipe import Recipe
from sdft.records import Comparison, Metric, Score
from sdft.rundir import read_json


def show_scoreboard(result: RunResult, console: Console) -> None:
    """Print a row for each metric and a column for each model."""
    models, rows = score_rows(result.recipe, result.path)
    if rows:
        title = f"{result.path.name}: value [95 % interval]; below it, the difference to the seed"
        console.table(title, ["", *models], rows)


def score_rows(recipe: Recipe, run: Path) -> tuple[list[str], list[list[str]]]:
    """The models, and for each metric a row: its name, then a cell for each model.

    A cell holds the value with its 95 % interval and, below it, the paired difference to the seed with its own.
    Shares are in percent.
    """
    scores = {
        (score.benchmark, score.metric, score.model): score
        for path in sorted(run.glob("eval/*/*/scores.json"))
        for score in map(Score.model_validate, read_json(path)["scores"])
    }
    compared = run / "eval/comparisons.json"
    differences = {
        (c.benchmark, c.metric, c.model): c
        for c in map(Comparison.model_validate, read_json(compared) if compared.exists() else [])
        if c.baseline == SEED
    }
    models = [SEED, *recipe.methods]
    rows = []
    for benchmark in recipe.evaluate.benchmarks:
        label = benchmark.called
        for name, metric in benchmark.metrics().items():
            keys = [(label, name, model) for model in models]
            if any(key in scores for key in keys):
                cells = [_cell(scores.get(key), differences.get(key), metric) for key in keys]
                arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[metric.better]
                rows.append([f"{label}\n{name}{arrow}", *cells])
    return models, rows


def _cell(score: Score | None, difference: Comparison | None, metric: Metric) -> str:
    if score is None:
        return "–"
    lines = [_number(score.value, metric) + _interval(score.low, score.high, metric)]
    if difference is not None:
        lines.append(_number(difference.difference, metric, "+") + _interval(difference.low, difference.high, metric))
    return "\n".join(lines)


def _number(value: float, metric: Metric, sign: str = "") -> str:
    return f"{100 * value:{sign}z.1f}" if metric.percent else f"{value:{sign}z.{_decimals(value)}f}"


def _interval(low: float, high: float, metric: Metric) -> str:
    if metric.percent:
        return f" [{100 * low:z.0f}, {100 * high:z.0f}]"
    decimals = _decimals(max(abs(low), abs(high)))
    return f" [{low:z.{decimals}f}, {high:z.{decimals}f}]"


def _decimals(value: float) -> int:
    """As many as leave about three digits."""
    return 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
