"""A run folder's parts → the facts of a report."""

from __future__ import annotations

import math
import statistics
from typing import Any

from sdft.records import Comparison, Score
from sdft.report.parts import ModelScores
from sdft.report.schema import (
    Analysis,
    BenchmarkTable,
    Difference,
    ManifestFacts,
    MetricRow,
    Report,
    SelectionFacts,
    Spread,
    TrainingFacts,
    Value,
)
from sdft.report.source import SEED, Run
from sdft.report.units import is_keyword, unit_of
from sdft.report.verdict import conclude
from sdft.rundir import file_sha256


def gather(run: Run) -> Report:
    """All numbers of a run, and the verdict on them."""
    recipe, manifest = run.recipe, run.manifest
    tables = tuple(_tables(run))
    selection = run.selection
    notes = [*manifest.notes, *(f"{s.model} on {s.label}: {note}" for s in run.scores for note in s.notes)]
    notes += _keyword_note(tables)
    path = run.folder / "manifest.json"
    return Report(
        name=str(manifest.name or recipe.get("name") or run.folder.resolve().name),
        seed_model=_name(recipe.get("model")),
        dataset=_dataset(recipe.get("data")),
        rows=_rows(run),
        created=manifest.created,
        sdft=manifest.sdft,
        methods=tuple(run.methods),
        verdict=conclude(tables, tuple(run.methods)),
        notes=tuple(dict.fromkeys(notes)),
        missing=tuple(dict.fromkeys(run.missing)),
        benchmarks=tables,
        selection=SelectionFacts(**selection.model_dump(), refused=run.refused) if selection else None,
        training={
            method: TrainingFacts(**training.model_dump(), loss=run.losses.get(method, []))
            for method, training in run.training.items()
        },
        reply_words={
            label: {model: _spread(words) for model, words in models.items()}
            for label, models in run.reply_words.items()
        },
        analysis=_analysis(run),
        manifest=ManifestFacts(
            sha256=file_sha256(path) if path.is_file() else None,
            versions=manifest.versions,
            hardware=manifest.hardware,
            hashes=manifest.hashes,
            seed=manifest.seed,
            durations=manifest.durations,
        ),
    )


def _analysis(run: Run) -> Analysis | None:
    if run.nll is None and not run.shifts and not run.weights:
        return None
    return Analysis(nll=run.nll, shifts=run.shifts, weights=run.weights)


def _name(section: Any) -> str | None:
    value = section.get("name") if isinstance(section, dict) else section
    return value if isinstance(value, str) else None


def _dataset(section: Any) -> str | None:
    if not isinstance(section, dict):
        return None
    name = section.get("dataset")
    options = section.get("options")
    task = options.get("task") if isinstance(options, dict) else None
    return f"{name} ({task})" if name and task else name


def _rows(run: Run) -> int | None:
    if run.selection is not None:
        return run.selection.examples
    rows = [training.rows for training in run.training.values() if training.rows is not None]
    if rows:
        return max(rows)
    path = run.folder / "data" / "train.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _spread(words: list[int]) -> Spread:
    quartiles = statistics.quantiles(words, n=4, method="inclusive") if len(words) > 1 else [float(words[0])] * 3
    return Spread(
        n=len(words),
        mean=statistics.fmean(words),
        minimum=min(words),
        quartiles=(quartiles[0], quartiles[1], quartiles[2]),
        maximum=max(words),
    )


def _keyword_note(tables: tuple[BenchmarkTable, ...]) -> list[str]:
    """What keyword matching cannot see, where a metric of this run rests on it."""
    by_keywords = [
        f"{table.label} {row.metric}"
        for table in tables
        for row in table.metrics
        if is_keyword(table.benchmark, row.metric)
    ]
    if not by_keywords:
        return []
    return [
        f"Judged by keywords: {', '.join(by_keywords)}. Keywords see how a reply is phrased, not what it does: one "
        "that says “I cannot” and goes on to help counts as a refusal, one that declines in other words does not. Read "
        "the replies, or name a judge_model."
    ]


def _tables(run: Run) -> list[BenchmarkTable]:
    by_label: dict[str, list[ModelScores]] = {}
    for scores in run.scores:  # task first, then in the recipe's order
        by_label.setdefault(scores.label, []).append(scores)
    return [_table(run, label, models) for label, models in by_label.items() if any(m.scores for m in models)]


def _table(run: Run, label: str, models: list[ModelScores]) -> BenchmarkTable:
    order = [SEED, *run.methods]
    models = sorted(models, key=lambda scores: order.index(scores.model))
    first = models[0]
    fullest = sorted(models, key=lambda scores: -len(scores.scores))  # the seed lacks distances from itself
    metrics = dict.fromkeys(score.metric for scores in fullest for score in scores.scores)
    rows = sorted((_row(run, metric, models) for metric in metrics), key=lambda row: not row.main)
    return BenchmarkTable(
        label=label,
        benchmark=first.benchmark,
        role=first.role,
        n=max(scores.n for scores in models),
        sampling=first.sampling,
        metrics=tuple(rows),
        groups={
            scores.model: {g: {m: finite(v) for m, v in means.items()} for g, means in scores.groups.items()}
            for scores in models
            if scores.groups
        },
        group_rows=run.group_rows.get(label, {}),
        notes=tuple(dict.fromkeys(note for scores in models for note in scores.notes)),
    )


def _row(run: Run, metric: str, models: list[ModelScores]) -> MetricRow:
    scores: dict[str, Score] = {m.model: s for m in models for s in m.scores if s.metric == metric}
    any_score = next(iter(scores.values()))
    # `Score.benchmark` may be a recipe's own label; the unit goes by the benchmark's name.
    unit = unit_of(any_score.model_copy(update={"benchmark": models[0].benchmark}))
    better = any_score.better
    of_metric = [c for c in run.comparisons if c.metric == metric]
    pairs = [c for c in of_metric if c.benchmark == models[0].label]
    pairs = pairs or [c for c in of_metric if c.benchmark == any_score.benchmark]
    return MetricRow(
        metric=metric,
        unit=unit,
        better=better,
        main=metric == models[0].main,
        from_seed=models[0].benchmark == "drift" and unit != "words",
        values={
            model: Value(value=finite(s.value), low=finite(s.low), high=finite(s.high), n=s.n)
            for model, s in scores.items()
        },
        differences=tuple(difference_of(c, better) for c in pairs),
    )


FEWEST = 20
"""Rows under which no difference is called one: an interval from fewer claims more than it knows."""


def difference_of(comparison: Comparison, better: str) -> Difference:
    """A stored comparison with what may be said of it."""
    low, high = finite(comparison.low), finite(comparison.high)
    apart = low is not None and high is not None and (low > 0 or high < 0)
    significant = apart and comparison.n >= FEWEST
    good = None if not significant or better == "neither" else (comparison.difference > 0) == (better == "higher")
    return Difference(
        model=comparison.model,
        baseline=comparison.baseline,
        difference=finite(comparison.difference),
        low=low,
        high=high,
        n=comparison.n,
        p_value=comparison.p_value,
        significant=significant,
        better=good,
    )


def finite(value: float | None) -> float | None:
    """The value, or None for what is not a number."""
    return value if value is not None and math.isfinite(value) else None
