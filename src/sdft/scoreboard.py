"""The scoreboard of a run in a terminal: 80 columns."""

from __future__ import annotations

from sdft.console import Console
from sdft.pipeline import SEED, RunResult
from sdft.records import Comparison, Metric, Score
from sdft.rundir import read_json


def show_scoreboard(result: RunResult, console: Console) -> None:
    """Print a row for each metric and a column for each model.

    A cell holds the value with its 95 % interval and, below it, the paired difference to the seed with its own.
    Shares are in percent.
    """
    run, recipe = result.path, result.recipe
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
        label = benchmark.label or benchmark.name
        for name, metric in benchmark.METRICS.items():
            keys = [(label, name, model) for model in models]
            if any(key in scores for key in keys):
                cells = [_cell(scores.get(key), differences.get(key), metric) for key in keys]
                arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[metric.better]
                rows.append([f"{label}\n{name}{arrow}", *cells])
    if rows:
        console.table(f"{run.name}: value [95 % interval], difference to the seed below", ["", *models], rows)


def _cell(score: Score | None, difference: Comparison | None, metric: Metric) -> str:
    if score is None:
        return "–"
    lines = [f"{_number(score.value, metric)} [{_number(score.low, metric)}, {_number(score.high, metric)}]"]
    if difference is not None:
        low, high = (_number(value, metric) for value in (difference.low, difference.high))
        lines.append(f"{_number(difference.difference, metric, '+')} [{low}, {high}]")
    return "\n".join(lines)


def _number(value: float, metric: Metric, sign: str = "") -> str:
    if metric.percent:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
