"""Several runs side by side: what differs in their settings, their scores, and gain against forgetting of them all.

Each value, and each difference from the seed, is a run's own. Between runs, each model is compared with the first run's
row by row, on the test rows that both were asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdft.report import charts, units
from sdft.report.between import RunDifference, between
from sdft.report.facts import gather
from sdft.report.figures import PALETTE, Figure, forgetting_of_all, tuned_points
from sdft.report.page import Cell, assets, cell_of, decoding, difference_cells, environment
from sdft.report.parts import Role
from sdft.report.schema import BenchmarkTable, Fact, MetricRow, Report
from sdft.report.source import SEED, read_run
from sdft.report.text import brief, markdown
from sdft.report.verdict import display, metric_name

UNTOLD = ("name", "output_dir")
"""Settings that say nothing about what a run does."""


class ComparedRun(Fact):
    """One run of a comparison."""

    name: str
    """Its own, with its folder's where two runs have the same."""
    folder: str
    settings: dict[str, str | None]
    """Recipe key to value as JSON, for the keys in which the runs differ; null where the run has no such key."""
    report: Report


class Comparison(Fact):
    """`comparison.json`."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning or goes; new fields do not raise it."""
    runs: tuple[ComparedRun, ...]
    differences: tuple[RunDifference, ...]
    """Of every later run from the first."""
    notes: tuple[str, ...]
    """What makes scores hard to compare."""


@dataclass(frozen=True, slots=True)
class Column:
    """One model of one run."""

    run: ComparedRun
    model: str
    name: str
    tone: str


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the runs. Raises RunError where a folder is not there."""
    loaded = [read_run(folder) for folder in folders]
    reports = [gather(run) for run in loaded]
    names = _names(folders, reports)
    differences, gaps = between(loaded, reports, names)
    flat = [dict(_flat(run.recipe)) for run in loaded]
    keys = [key for key in dict.fromkeys(key for tree in flat for key in tree) if key.split(".")[0] not in UNTOLD]
    differ = [key for key in keys if len({tree.get(key) for tree in flat}) > 1]
    runs = tuple(
        ComparedRun(name=name, folder=str(folder), settings={key: tree.get(key) for key in differ}, report=report)
        for name, folder, tree, report in zip(names, folders, flat, reports, strict=True)
    )
    return Comparison(runs=runs, differences=tuple(differences), notes=(*_notes(runs), *gaps))


def _names(folders: Sequence[Path], reports: Sequence[Report]) -> list[str]:
    """Each run's name; where two are equal, with as much of the path as tells them apart."""
    names = [report.name for report in reports]
    if len(set(names)) == len(names):
        return names
    paths = [folder.resolve().parts for folder in folders]
    most = max(map(len, paths))
    for depth in range(1, most + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A tree of settings as dotted keys with values in JSON."""
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, ensure_ascii=False, default=str)


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    yield (
        "In the scoreboard each difference is from the run's own seed model, over the run's own test rows. Between the "
        "runs, each model is compared with the first run's, over the test rows that both were asked."
    )
    for what in ("seed_model", "dataset"):
        if len({getattr(run.report, what) for run in runs}) > 1:
            yield f"The runs differ in their {what.replace('_', ' ')}."
    for label in _labels(runs):
        tables = [table for run in runs if (table := _table(run, label))]
        if len({table.n for table in tables}) > 1:
            yield f"{label}: the runs were measured on different numbers of rows."
        if len({json.dumps(table.sampling, sort_keys=True, default=str) for table in tables}) > 1:
            yield f"{label}: the runs' replies were decoded differently."
    for run in runs:
        yield from (f"{run.name}: {line}" for line in run.report.missing)


def _labels(runs: Sequence[ComparedRun]) -> list[str]:
    """Every benchmark's label, tasks first, in the first run's order."""
    tables = [table for run in runs for table in run.report.benchmarks]
    return list(dict.fromkeys(table.label for table in sorted(tables, key=lambda table: table.role != "task")))


def _table(run: ComparedRun, label: str) -> BenchmarkTable | None:
    return next((table for table in run.report.benchmarks if table.label == label), None)


def _row(run: ComparedRun, label: str, metric: str) -> MetricRow | None:
    table = _table(run, label)
    return next((row for row in table.metrics if row.metric == metric), None) if table else None


def columns(made: Comparison) -> list[Column]:
    """The seed, once where it scored alike in all runs, and each run's methods."""
    found: list[Column] = []
    once = _one_seed(made.runs)
    for index, run in enumerate(made.runs):
        tone = PALETTE[index % len(PALETTE)]
        for model in run.report.models:
            if model != SEED:
                found.append(Column(run, model, f"{run.name}: {display(model)}", tone))
            elif not once:
                found.append(Column(run, model, f"{run.name}: {display(SEED)}", "seed"))
    if once:
        found.insert(0, Column(made.runs[0], SEED, display(SEED), "seed"))
    return found


def _one_seed(runs: Sequence[ComparedRun]) -> bool:
    scores = {
        json.dumps(
            [(table.label, row.metric, row.values[SEED].value)
             for table in run.report.benchmarks for row in table.metrics if SEED in row.values]
        )
        for run in runs
    }  # fmt: skip
    return len(scores) == 1


@dataclass(frozen=True, slots=True)
class Line:
    """One metric over all columns."""

    label: str
    name: str
    caption: str
    row: MetricRow
    cells: list[Cell | None]


def boards(made: Comparison) -> Iterator[tuple[str, list[list[Line]]]]:
    """Heading of a role, and its benchmarks, each with its metrics."""
    headings: dict[Role, str] = {"task": "Task: what was to be learnt", "retention": "Retention: what was to be kept"}
    shown = columns(made)
    for role, heading in headings.items():
        blocks = []
        for label in _labels(made.runs):
            tables = [table for run in made.runs if (table := _table(run, label))]
            if tables[0].role != role:
                continue
            rows: dict[str, MetricRow] = {}
            for table in tables:
                rows |= {row.metric: row for row in table.metrics if row.metric not in rows}
            caption = f"n = {tables[0].n:,} · {decoding(tables[0].sampling)}"
            lines = []
            for metric, row in sorted(rows.items(), key=lambda pair: not pair[1].main):
                cells = []
                for column in shown:
                    there, own = _table(column.run, label), _row(column.run, label, metric)
                    cells.append(cell_of(there, own, column.model) if there and own else None)
                lines.append(Line(label, metric_name(row), caption, row, cells))
            blocks.append(lines)
        if blocks:
            yield heading, blocks


def figures(made: Comparison) -> Iterator[Figure]:
    """Gain against forgetting for each task, one point for each run and method, with the frontier."""
    reports = [run.report for run in made.runs]
    shared = forgetting_of_all(reports)
    if shared is None:
        return
    x_label, how, xs = shared
    methods = {method for report in reports for method in report.methods}
    for label in _labels(made.runs):
        points = [charts.Point(display(SEED), "seed", 0.0, 0.0)]
        first: MetricRow | None = None
        for index, run in enumerate(made.runs):
            table = _table(run, label)
            if table is None or table.role != "task":
                continue
            first = first or table.main
            for model, point in tuned_points(table.main, run.report.methods, xs[index]):
                name = run.name if len(methods) == 1 else f"{run.name}: {display(model)}"
                tone = PALETTE[index % len(PALETTE)]
                points.append(charts.Point(brief(name, 30), tone, point.x, point.y, point.x_interval, point.y_interval))
        if first is None or len(points) == 1:
            continue
        unit = "points" if first.unit == "percent" else first.unit
        title = f"Gain on {label} against forgetting"
        yield Figure(
            name=f"gain-{label}",
            title=title,
            svg=charts.scatter(title, points, x_label, f"gain, {unit}", charts.frontier(points)),
            caption="Up is better on the task, left is closer to the seed. Bars are 95 % intervals over the test rows. "
            f"Dashed: the frontier, the points that no other beats in both. To the right: {how}",
            legend=tuple((PALETTE[i % len(PALETTE)], run.name) for i, run in enumerate(made.runs)),
        )


def render_html(made: Comparison) -> str:
    """The whole page, self-contained."""
    from markupsafe import Markup

    return environment().get_template("compare.html.j2").render(
        made=made,
        assets=assets(),
        columns=columns(made),
        boards=list(boards(made)),
        pairs=[(pair, *difference_cells(pair.difference, pair.unit)) for pair in made.differences],
        figures=[(figure, Markup(figure.svg)) for figure in figures(made)],
        keys=list(made.runs[0].settings),
    )  # fmt: skip


def render_markdown(made: Comparison) -> str:
    """Settings that differ and a scoreboard, for a pull request."""
    shown = columns(made)
    lines = [f"# {markdown(', '.join(run.name for run in made.runs))}", ""]
    keys = list(made.runs[0].settings)
    if keys:
        lines += [f"| setting | {' | '.join(markdown(run.name) for run in made.runs)} |"]
        lines += [f"|---|{'---|' * len(made.runs)}"]
        for key in keys:
            values = (run.settings[key] for run in made.runs)
            lines.append(f"| {markdown(key)} | {' | '.join(markdown(v or units.ABSENT) for v in values)} |")
        lines.append("")
    lines += [f"| benchmark | {' | '.join(markdown(column.name) for column in shown)} |"]
    lines += [f"|---|{'---:|' * len(shown)}"]
    for _, blocks in boards(made):
        for line in (line for block in blocks for line in block):
            cells = [_markdown_cell(cell) for cell in line.cells]
            lines.append(f"| {markdown(line.label)}, {markdown(line.name)} | {' | '.join(cells)} |")
    lines += ["", "In brackets: 95 % intervals; then the paired difference from the seed, bold where its interval"]
    lines += ["excludes 0.", ""]
    if made.differences:
        lines += [
            "| between the runs | benchmark | metric | difference | 95 % interval | rows |",
            "|---|---|---|---:|---:|---:|",
        ]
    for pair in made.differences:
        shown_as, span, _, mark = difference_cells(pair.difference, pair.unit)
        what = f"**{shown_as}**" if mark else shown_as
        named = f"{markdown(pair.models)} | {markdown(pair.benchmark)} | {markdown(pair.metric_name)}"
        lines.append(f"| {named} | {what} | {span} | {pair.difference.n:,} |")
    lines += [""] * bool(made.differences)
    lines += [f"- {markdown(note)}" for note in made.notes]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return units.ABSENT
    text = cell.value + (f" ({cell.interval})" if cell.interval else "")
    if not cell.change:
        return text
    return f"{text}, **{cell.change}**" if cell.mark else f"{text}, {cell.change}"
