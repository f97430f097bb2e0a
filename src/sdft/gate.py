"""Conditions that a run's report must meet, for continuous integration: what was gained, and what was lost at most.

    sdft gate runs/mine --max-loss ifeval=2 --min-gain bfcl_simple=10

The value itself decides, not its interval; the interval is printed beside it. Values are in the unit that the report
shows: points for a metric in percent, nats for the drift from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sdft.errors import RunError, did_you_mean
from sdft.report import units
from sdft.report.facts import gather
from sdft.report.schema import BenchmarkTable, MetricRow, Report
from sdft.report.source import SEED, read_run
from sdft.report.verdict import display, metric_name

Kind = Literal["loss", "gain"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit on one metric: at most so much lost, or at least so much gained, against the seed."""

    kind: Kind
    target: str
    """`BENCHMARK`, for its main metric, or `BENCHMARK.METRIC`."""
    limit: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A condition held against a report."""

    passed: bool
    text: str
    """One line, fit to print: the value, its interval, the limit."""


def parse_conditions(losses: Iterable[str], gains: Iterable[str]) -> list[Condition]:
    """`["ifeval=2"]`, `["bfcl_simple=10"]` → conditions. Raises RunError for what is not of that form, or for none."""
    found = [_parsed("loss", text) for text in losses] + [_parsed("gain", text) for text in gains]
    if not found:
        raise RunError("nothing to hold the run to: give --max-loss BENCHMARK=POINTS or --min-gain BENCHMARK=POINTS")
    return found


def _parsed(kind: Kind, text: str) -> Condition:
    target, equals, number = text.rpartition("=")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    option = "--max-loss" if kind == "loss" else "--min-gain"
    if not (equals and target.strip() and math.isfinite(limit)):
        raise RunError(f"{option} {text}: not of the form BENCHMARK=POINTS, such as gsm8k=2 or gsm8k.accuracy=2")
    if limit < 0:
        raise RunError(f"{option} {text}: a limit is not negative; use the other option for the other direction")
    return Condition(kind, target.strip(), limit)


def read_report(folder: Path) -> Report:
    """The numbers of a run's folder as they are now; where only its report is there, those of the report.

    Raises RunError where there is none that can be read.
    """
    if (folder / "eval").is_dir():
        return gather(read_run(folder))
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; `sdft run RECIPE` makes one")
    path = folder / "report" / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: missing; `sdft report {folder}` writes it") from None
    except (OSError, ValidationError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise RunError(f"{path}: cannot be read ({what}); `sdft report {folder}` writes it anew") from None


def gate(report: Report, conditions: Sequence[Condition], method: str = "sdft") -> list[Outcome]:
    """Hold a report to conditions. Raises RunError where one names what the report does not have."""
    if method not in report.methods:
        raise RunError(f"{report.name}: no method '{method}'{did_you_mean(method, report.methods)}")
    return [_outcome(*_find(report, condition.target), condition, method) for condition in conditions]


def _find(report: Report, target: str) -> tuple[BenchmarkTable, MetricRow]:
    """The metric that a condition names; a label may hold dots itself."""
    tables = {table.label: table for table in report.benchmarks}
    if target in tables:
        return tables[target], tables[target].main
    label, _, metric = target.rpartition(".")
    table = tables.get(label)
    if table is None:
        raise RunError(f"{report.name}: no benchmark '{target}'{did_you_mean(label or target, tables)}")
    rows = {row.metric: row for row in table.metrics}
    if metric not in rows:
        raise RunError(f"{report.name}: {label} has no metric '{metric}'{did_you_mean(metric, rows)}")
    return table, rows[metric]


def _outcome(table: BenchmarkTable, row: MetricRow, condition: Condition, method: str) -> Outcome:
    what = f"{table.label} {metric_name(row)}, {display(method)}"
    if row.better == "neither":
        raise RunError(f"{table.label}.{row.metric}: neither more nor less of it is better, so nothing can be lost")
    if row.from_seed:
        return _distance(table, row, condition, method, what)
    pair = row.against(method, SEED)
    if pair is None or pair.difference is None:
        raise RunError(
            f"{what}: the report has no difference from the seed; `sdft eval` and `sdft report` make it, with the "
            "seed's and the method's scores there"
        )
    factor = units.scale(row.unit) * (1.0 if row.better == "higher" else -1.0)  # upwards is better
    change = factor * pair.difference
    span = ""
    if pair.low is not None and pair.high is not None:
        span = f" ({units.CONFIDENCE} {units.signed_interval(pair.low, pair.high, row.unit)})"
    told = f"{units.difference(pair.difference, row.unit)} against the seed{span}"
    if row.better == "lower":
        told += ", less is better"
    return _held(condition, -change if condition.kind == "loss" else change, f"{what}: {told}")


def _distance(table: BenchmarkTable, row: MetricRow, condition: Condition, method: str, what: str) -> Outcome:
    """A metric that is itself a distance from the seed: what was lost is how far it lies from none."""
    if condition.kind == "gain":
        raise RunError(f"{table.label}.{row.metric}: it measures the distance from the seed, which cannot be gained")
    score = row.values.get(method)
    if score is None or score.value is None:
        raise RunError(f"{what}: not measured in this run")
    lost = units.scale(row.unit) * (score.value if row.better == "lower" else 1.0 - score.value)
    span = ""
    if score.low is not None and score.high is not None:
        span = f" ({units.CONFIDENCE} {units.interval(score.low, score.high, row.unit)})"
    return _held(condition, lost, f"{what}: {units.quantity(score.value, row.unit)}{span}")


def _held(condition: Condition, value: float, told: str) -> Outcome:
    slack = 1e-9  # 0.52 - 0.50 is two points, whatever binary fractions say
    if condition.kind == "loss":
        passed = value <= condition.limit + slack
        limit = f"at most {condition.limit:g} may be lost"
    else:
        passed = value >= condition.limit - slack
        limit = f"at least {condition.limit:g} to be gained"
    return Outcome(passed, f"{'pass' if passed else 'FAIL'}  {told}; {limit}")
