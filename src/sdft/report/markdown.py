"""The report as markdown, short enough for a pull request: verdict, scoreboard, selection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sdft.report import units
from sdft.report.figures import LIKENESS
from sdft.report.schema import MetricRow, Report
from sdft.report.source import SEED
from sdft.report.text import markdown
from sdft.report.verdict import OPEN_NOTES, display, folded, metric_name


def render_markdown(report: Report) -> str:
    """The whole text."""
    return (
        "\n".join(
            [*_head(report), *_verdict(report), *_scoreboard(report), *_selection(report), *_analyses(report)]
        ).rstrip()
        + "\n"
    )


def _head(report: Report) -> Iterator[str]:
    yield f"# {markdown(report.name)}"
    yield ""
    facts = [report.seed_model, report.dataset, f"{report.rows:,} rows" if report.rows is not None else None]
    facts += [report.created, f"sdft {report.sdft}" if report.sdft else None]
    yield " · ".join(markdown(fact) for fact in facts if fact)
    yield ""


def _verdict(report: Report) -> Iterator[str]:
    yield f"**{markdown(report.verdict.headline)}**"
    yield ""
    shown, noise = folded(report.verdict.statements)
    yield from _bullets(statement.text for statement in shown)
    if noise:
        yield from _put_away(f"{len(noise)} differences within noise", (statement.text for statement in noise))
    if len(report.notes) > OPEN_NOTES:
        yield from _put_away(f"{len(report.notes)} notes", report.notes)
    elif report.notes:
        yield from ("Notes:", "", *_bullets(report.notes))
    if report.missing:
        yield from ("Missing:", "", *_bullets(report.missing))


def _bullets(items: Iterable[str]) -> Iterator[str]:
    lines = [f"- {markdown(item)}" for item in items]
    yield from [*lines, ""] if lines else ()


def _put_away(summary: str, items: Iterable[str]) -> Iterator[str]:
    """Lines that a click shows, where the markdown is shown as a page."""
    yield from ("<details>", f"<summary>{summary}</summary>", "", *_bullets(items), "</details>", "")


def _scoreboard(report: Report) -> Iterator[str]:
    if not report.benchmarks:
        return
    yield "## Scoreboard"
    yield ""
    yield f"| benchmark | {' | '.join(markdown(display(m)) for m in report.models)} |"
    yield f"|---|{'---:|' * len(report.models)}"
    for table in report.benchmarks:
        for row in table.metrics:
            cells = [_cell(row, model) for model in report.models]
            yield f"| {markdown(table.label)}, {markdown(metric_name(row))} (n = {row.n}) | {' | '.join(cells)} |"
    yield ""
    yield "In brackets: 95 % intervals. Bold: the interval of the paired difference from the seed excludes 0."
    yield ""


def _cell(row: MetricRow, model: str) -> str:
    value = row.values.get(model)
    if value is None:
        return units.ABSENT
    text = units.quantity(value.value, row.unit)
    if value.low is not None and value.high is not None:
        text += f" ({units.interval(value.low, value.high, row.unit)})"
    pair = row.against(model, SEED)
    if pair is None or row.from_seed:
        return text
    change = units.signed(pair.difference, row.unit)
    return f"{text}, **{change}**" if pair.significant else f"{text}, {change}"


def _selection(report: Report) -> Iterator[str]:
    s = report.selection
    if s is None:
        return
    yield "## Selection"
    yield ""
    yield (
        f"{s.examples:,} examples: {units.share(s.rewritten, s.examples)} rewritten "
        f"({units.share(s.identical, s.examples)} equal to the original), "
        f"{units.share(s.kept, s.examples)} kept as they were."
    )
    yield ""
    if s.refused:
        yield "| why the original stays | examples |"
        yield "|---|---:|"
        yield from (f"| {markdown(reason)} | {n:,} |" for reason, n in s.refused.items())


def _analyses(report: Report) -> Iterator[str]:
    analysis = report.analysis
    if analysis is None:
        return
    yield ""
    yield "## Gap and shift"
    yield ""
    if analysis.nll and analysis.nll.replies:
        yield "| nats per token of training replies | original | distilled |"
        yield "|---|---:|---:|"
        for model in dict.fromkeys(fit.model for fit in analysis.nll.replies):
            fits = {fit.variant: fit.per_token for fit in analysis.nll.replies if fit.model == model}
            cells = [
                f"{units.number(fit.value, 'nats')} ({units.interval(fit.low, fit.high, 'nats')})" if fit else ""
                for fit in (fits.get("original"), fits.get("distilled"))
            ]
            yield f"| {markdown(display(model))} | {' | '.join(cells)} |"
        yield ""
    for shift in analysis.shifts:
        means = ", ".join(f"{LIKENESS[name]} {mean.value:.2f}" for name, mean in shift.metrics.items())
        yield f"- {markdown(display(shift.model))} on {markdown(shift.benchmark)} against the seed's replies: {means}"
    for method, change in analysis.weights.items():
        share = f", {100 * change.relative:.2g} % of the trained weights' norm" if change.relative is not None else ""
        yield f"- {markdown(display(method))}: weight change {units.number(change.norm, 'number')}{share}"
