"""Two runs against each other, row by row: the same method, on the test rows that both were asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdft.errors import RunError
from sdft.records import Metric, Prediction
from sdft.report import units
from sdft.report.facts import difference_of
from sdft.report.parts import ModelScores
from sdft.report.schema import Difference, Fact, Report
from sdft.report.source import SEED, Run
from sdft.report.verdict import display, metric_name
from sdft.rundir import read_jsonl
from sdft.stats import compare


class RunDifference(Fact):
    """One model of one run, less the same of the first run, on one metric."""

    run: str
    baseline_run: str
    benchmark: str
    """Its label."""
    metric: str
    metric_name: str
    """As people read it."""
    unit: units.Unit
    main: bool
    """Whether it is the benchmark's main metric."""
    difference: Difference
    """`model` and `baseline` name the model in each run: the same method, or the only one that each has."""

    @property
    def models(self) -> str:
        """What is compared, in words: `SDFT: long − short`."""
        left, right = display(self.difference.model), display(self.difference.baseline)
        if left == right:
            return f"{left}: {self.run} {units.MINUS} {self.baseline_run}"
        return f"{self.run}: {left} {units.MINUS} {self.baseline_run}: {right}"


class Gap(Exception):
    """Why two models' replies cannot be held against each other."""


def between(
    runs: Sequence[Run], reports: Sequence[Report], names: Sequence[str]
) -> tuple[list[RunDifference], list[str]]:
    """Every later run against the first, and why a pair that one would expect is not there."""
    found: list[RunDifference] = []
    notes: list[str] = []
    for run, report, name in zip(runs[1:], reports[1:], names[1:], strict=True):
        for label in [table.label for table in report.benchmarks]:
            for model, baseline in _models(run, runs[0], label):
                try:
                    found += _pairs(run, runs[0], report, label, model, baseline, name, names[0])
                except Gap as gap:
                    notes.append(f"{label}: {name} and {names[0]} are not compared row by row: {gap}.")
    return found, list(dict.fromkeys(notes))


def _models(run: Run, first: Run, label: str) -> Iterator[tuple[str, str]]:
    """The seeds, and each method that both have; or the only one of each."""
    own, others = ([s.model for s in r.scores if s.label == label] for r in (run, first))
    shared = [model for model in own if model in others]
    tuned = [[model for model in models if model != SEED] for models in (own, others)]
    yield from ((model, model) for model in shared)
    if set(shared) <= {SEED} and len(tuned[0]) == len(tuned[1]) == 1:
        yield tuned[0][0], tuned[1][0]


def _pairs(
    run: Run, first: Run, report: Report, label: str, model: str, baseline: str, name: str, first_name: str
) -> Iterator[RunDifference]:
    scores = next(s for s in run.scores if (s.label, s.model) == (label, model))
    rows, others = _rows(run, label, model), _rows(first, label, baseline)
    both = [key for key in rows if key in others]
    if not both:
        raise Gap("they share no row")
    if any(rows[key].label != others[key].label for key in both):
        raise Gap("rows of one id have other references")
    if model == SEED and all(rows[key].values == others[key].values for key in both):
        return
    table = next(table for table in report.benchmarks if table.label == label)
    by_name = {row.metric: row for row in table.metrics}
    for pair in compare(model, baseline, label, _metrics(scores), rows.values(), others.values()):
        row = by_name[pair.metric]
        yield RunDifference(
            run=name,
            baseline_run=first_name,
            benchmark=label,
            metric=pair.metric,
            metric_name=metric_name(row),
            unit=row.unit,
            main=row.main,
            difference=difference_of(pair, row.better),
        )


def _metrics(scores: ModelScores) -> dict[str, Metric]:
    return {score.metric: Metric(kind=score.kind, better=score.better) for score in scores.scores}


def _rows(run: Run, label: str, model: str) -> dict[str, Prediction]:
    """Predictions by id. Raises Gap where they are not there."""
    path = run.folder / "eval" / model / label / "predictions.jsonl"
    if not path.exists():
        raise Gap(f"{path} is not there")
    try:
        return {row.id: row for row in read_jsonl(path, Prediction)}
    except RunError as error:
        raise Gap(str(error)) from None
