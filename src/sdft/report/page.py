"""The report as one HTML file: no network, no font from elsewhere, and one script, our own.

Text from datasets and models is escaped by jinja's autoescape, and its hidden characters are made visible, for
every value that the template prints. Should either fail, the page's content policy runs no script but the one whose
hash it names, and what that one loads from the folder beside the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.console import duration
from sdft.records import CandidateVerdict
from sdft.report import units
from sdft.report.browse import Book, Load, dumped
from sdft.report.figures import LIKENESS, figures, ordinal, tones
from sdft.report.schema import BenchmarkTable, Difference, MetricRow, Report
from sdft.report.source import SEED, Pick, Run
from sdft.report.text import Excerpt, Kind, brief, excerpt, word_diff
from sdft.report.units import Unit
from sdft.report.verdict import DISTILLED, OPEN_NOTES, VANILLA, display, folded, metric_name
from sdft.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Cell:
    """One model's cell of the scoreboard, ready to print."""

    value: str
    interval: str
    change: str
    """Difference from the seed, or empty."""
    change_interval: str
    mark: str
    """CSS class: `good`, `bad`, `moved` for a significant change that is neither, or empty."""
    hover: str
    sort: str
    """What the column is sorted by: the value, or for a pair the difference."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Style sheet and script as they stand in a page, and the content policy that allows just these."""

    style: Markup
    script: Markup
    policy: Markup


def assets() -> Assets:
    """Those of every page that we make.

    What a script of ours inserts may run too (`strict-dynamic`): the pieces of a book, from the folder beside.
    """
    from markupsafe import Markup

    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}' 'strict-dynamic'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Assets(Markup(style), Markup(script), Markup(policy))


def render_html(run: Run, report: Report, books: Sequence[Book], load: Load) -> str:
    """The whole page; `load` gives the parts of the books that stand in it."""
    from markupsafe import Markup

    template = environment().get_template("page.html.j2")
    # Marked as safe: charts, which escape their labels themselves, and JSON without signs that mean anything in HTML.
    return template.render(
        report=report,
        assets=assets(),
        books=books,
        beside=[book.key if book.stem == "rewrites" else book.stem for book in books if not book.in_page],
        heads=Markup(dumped([book.head() for book in books])),
        parts=[(name, Markup(load(name))) for book in books if book.in_page for name in book.parts],
        figures=[(figure, Markup(figure.svg)) for figure in figures(run, report)],
        boards=list(_boards(report)),
        has_pair=any(row.against(DISTILLED, VANILLA) for t in report.benchmarks for row in t.metrics),
        comparisons=list(_comparisons(report)),
        likelihoods=list(likelihoods(report)),
        likenesses=list(likenesses(report)),
        rewrites=[_rewrite(pick) for pick in run.picks],
        recipe=run.recipe_text,
        topics=_topics(report),
        open_notes=OPEN_NOTES,
        tones=tones(report.methods),
        display=display,
        training=report.training,
    )


def environment() -> Environment:
    """Jinja with autoescape; every value that is printed has its hidden characters made visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def show(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "brief": brief,
        "count": units.count,
        "size": units.size,
        "seconds": _seconds,
        "listed": _listed,
        "key": _key,
        "moment": _moment,
    }
    return environment


def _key(value: float | None) -> str:
    """A number as a table is sorted by it; nothing where there is none."""
    return "" if value is None else f"{value:.9g}"


def _seconds(value: float | None) -> str:
    return units.ABSENT if value is None else duration(value)


def _listed(value: Any, key: Any = "") -> str:
    """A value of the manifest: lists with commas, sizes in bytes as people say them."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int | float) and str(key).endswith("_bytes"):
        return units.size(value)
    return str(value)


def _moment(value: str) -> str:
    """An ISO time stamp as `2026-11-21 10:42 UTC`; other texts stay."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return brief(value)


def _topics(report: Report) -> list[tuple[str, list[Any], list[Any]]]:
    """The verdict's sentences under their headings, and those put away; empty headings are left out."""
    names = {"task": "On the task", "retention": "Elsewhere", "methods": "SDFT against vanilla fine-tuning"}
    by_topic = [(name, [s for s in report.verdict.statements if s.topic == topic]) for topic, name in names.items()]
    return [(name, *folded(statements)) for name, statements in by_topic if statements]


# Scoreboard


def decoding(sampling: dict[str, Any]) -> str:
    """How replies were decoded: `greedy, at most 48 tokens`."""
    if not sampling:
        return "decoding not recorded"
    parts = ["greedy"]
    if sampling.get("temperature"):
        names = {"temperature": "temperature", "top_p": "top-p", "top_k": "top-k"}
        parts = [f"{name} {sampling[key]}" for key, name in names.items() if sampling.get(key)]
    if sampling.get("max_new_tokens"):
        parts.append(f"at most {sampling['max_new_tokens']} tokens")
    return ", ".join(parts)


def _boards(report: Report) -> Iterator[tuple[str, list[tuple[BenchmarkTable, str, list[Any]]]]]:
    """Role's heading, and its benchmarks with caption and rows: (row, name, cells by model, pair's cell)."""
    for role, heading in (("task", "Task: what was to be learnt"), ("retention", "Retention: what was to be kept")):
        tables = []
        for table in report.benchmarks:
            if table.role == role:
                rows = [
                    (row, _row_name(table, row), [cell_of(table, row, m) for m in report.models], _pair_cell(row))
                    for row in table.metrics
                ]
                tables.append((table, f"n = {table.n:,} · {decoding(table.sampling)}", rows))
        if tables:
            yield heading, tables


def _row_name(table: BenchmarkTable, row: MetricRow) -> str:
    """The metric's name, with its rows where they are not all of the benchmark's."""
    return metric_name(row) + (f", n = {row.n:,}" if row.n != table.n else "")


def cell_of(table: BenchmarkTable, row: MetricRow, model: str) -> Cell | None:
    """One model's cell of a benchmark's row; None where it has no score."""
    value = row.values.get(model)
    if value is None:
        return None
    span = _interval(value.low, value.high, row.unit)
    hover = f"{display(model)} on {table.label}: n = {value.n:,}, {decoding(table.sampling)}"
    if span:
        hover += f", {units.CONFIDENCE} {span}"
    key = "" if value.value is None else _key(units.scale(row.unit) * value.value)
    pair = row.against(model, SEED)
    if row.from_seed or model == SEED:
        return Cell(units.quantity(value.value, row.unit), span, "", "", "", hover, key)
    if pair is None:
        before = row.values.get(SEED)
        known = before is not None and before.value is not None and value.value is not None
        change = units.signed(value.value - before.value, row.unit) if known else ""  # type: ignore[operator,union-attr]
        return Cell(units.quantity(value.value, row.unit), span, change, "", "", hover, key)
    change = units.signed(pair.difference, row.unit)
    between = _signed_interval(pair, row.unit)
    hover += f"; difference from the seed {between}" if between else ""
    return Cell(units.quantity(value.value, row.unit), span, change, between, _mark(pair), hover, key)


def _pair_cell(row: MetricRow) -> Cell | None:
    pair = row.against(DISTILLED, VANILLA)
    if pair is None:
        return None
    span = _signed_interval(pair, row.unit)
    hover = f"SDFT minus vanilla fine-tuning, paired over {pair.n:,} rows, {units.CONFIDENCE} {span}"
    key = "" if pair.difference is None else _key(units.scale(row.unit) * pair.difference)
    return Cell("", "", units.signed(pair.difference, row.unit), span, _mark(pair), hover, key)


def _mark(pair: Difference) -> str:
    if not pair.significant:
        return ""
    return "moved" if pair.better is None else "good" if pair.better else "bad"


def _interval(low: float | None, high: float | None, unit: Unit) -> str:
    return "" if low is None or high is None else units.interval(low, high, unit)


def _signed_interval(pair: Difference, unit: Unit) -> str:
    return "" if pair.low is None or pair.high is None else units.signed_interval(pair.low, pair.high, unit)


def _comparisons(report: Report) -> Iterator[tuple[str, str, str, str, str, str, str, Difference]]:
    """Rows: models, benchmark, metric, difference, interval, p, mark, and the pair itself."""
    for table in report.benchmarks:
        for row in table.metrics:
            for pair in row.differences:
                if row.from_seed and pair.baseline == SEED:
                    continue  # a distance from the seed, less the seed's own: nothing to test
                yield (
                    f"{display(pair.model)} {units.MINUS} {display(pair.baseline)}",
                    table.label,
                    metric_name(row),
                    *difference_cells(pair, row.unit),
                    pair,
                )


def difference_cells(pair: Difference, unit: Unit) -> tuple[str, str, str, str]:
    """A paired difference as printed: difference, interval, p, mark."""
    return (
        units.difference(pair.difference, unit),
        _signed_interval(pair, unit),
        units.p_value(pair.p_value),
        _mark(pair),
    )


# Analyses


def likelihoods(report: Report) -> Iterator[tuple[str, ...]]:
    """Rows: model, its name, replies, per token, interval, perplexity, per example, interval."""
    for fit in report.analysis.nll.replies if report.analysis and report.analysis.nll else ():
        token, example = fit.per_token, fit.per_example
        yield (
            fit.model,
            display(fit.model),
            fit.variant,
            units.number(token.value, "nats"),
            units.interval(token.low, token.high, "nats"),
            units.number(fit.perplexity_per_token.value, "number"),
            units.number(example.value, "nats"),
            units.interval(example.low, example.high, "nats"),
        )


def likenesses(report: Report) -> Iterator[tuple[str, str, str, int, list[str]]]:
    """Rows: model, its name, benchmark, replies, and each measure's mean with its interval, or nothing."""
    for shift in report.analysis.shifts if report.analysis else ():
        cells = [
            f"{mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})" if (mean := shift.metrics.get(name)) else ""
            for name in LIKENESS
        ]
        yield shift.model, display(shift.model), shift.benchmark, shift.rows, cells


# Rewrites


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate as the page shows it."""

    name: str
    ok: bool
    reason: str
    detail: str
    text: Excerpt


@dataclass(frozen=True, slots=True)
class RewriteView:
    """One row of the sample: the original beside what became of it."""

    example_id: str
    instruction: Excerpt | None
    rewritten: bool
    verdict: str
    detail: str
    original: Excerpt
    original_runs: list[tuple[Kind, str]]
    chosen: Excerpt | None
    """None where the original stays."""
    chosen_runs: list[tuple[Kind, str]]
    chosen_name: str
    others: list[Candidate]
    """Candidates that were not chosen."""


def _rewrite(pick: Pick) -> RewriteView:
    choice = pick.choice
    rewritten = choice.source == "rewrite"
    original, chosen = excerpt(choice.original), excerpt(choice.response) if rewritten else None
    runs: list[tuple[Kind, str]] = word_diff(original.text, chosen.text) if chosen else [("same", original.text)]
    others = [_candidate(c) for c in choice.candidates if not rewritten or c.candidate != choice.candidate]
    return RewriteView(
        example_id=brief(choice.example_id, 80),
        instruction=None if pick.instruction is None else excerpt(pick.instruction),
        rewritten=rewritten,
        verdict="passed all checks" if choice.verdict.reason == "ok" else choice.verdict.reason.replace("_", " "),
        detail=brief(choice.verdict.detail),
        original=original,
        original_runs=[(kind, text) for kind, text in runs if kind != "added"],
        chosen=chosen,
        chosen_runs=[(kind, text) for kind, text in runs if kind != "removed"],
        chosen_name=f"{ordinal(choice.candidate or 0).capitalize()} rewrite, taken",
        others=others,
    )


def _candidate(candidate: CandidateVerdict) -> Candidate:
    return Candidate(
        name=f"{ordinal(candidate.candidate).capitalize()} rewrite, {'passed' if candidate.verdict.ok else 'refused'}",
        ok=candidate.verdict.ok,
        reason=candidate.verdict.reason.replace("_", " "),
        detail=brief(candidate.verdict.detail),
        text=excerpt(candidate.text),
    )
