"""The pictures of a report, each from its facts. A picture without data is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sdft.report import charts
from sdft.report.parts import Histogram
from sdft.report.schema import Analysis, BenchmarkTable, Difference, MetricRow, Report, SelectionFacts, Value
from sdft.report.source import SEED, Run
from sdft.report.units import CONFIDENCE, count, number, quantity, scale, share, signed, signed_interval
from sdft.report.verdict import display, metric_name

PALETTE = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture with its words. `svg` is markup that is safe to put into a page as it is."""

    name: str
    title: str
    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    """(tone, label) of each series."""


def tones(methods: tuple[str, ...]) -> dict[str, str]:
    """A colour for each model, the same in every picture and table: `sft` is `a` and `sdft` is `b`."""
    fixed = {SEED: "seed", "sft": "a", "sdft": "b"}
    others = [method for method in methods if method not in fixed]
    return fixed | {method: PALETTE[2 + index % 4] for index, method in enumerate(others)}


def figures(run: Run, report: Report) -> list[Figure]:
    """All pictures that the run has data for."""
    colours = tones(report.methods)
    found = [*_gain_against_forgetting(report, colours)]
    if report.selection is not None:
        found += [*_selection(report.selection), *_lengths(report.selection)]
    found += [*_losses(report, colours), *_drift_groups(report, colours), *_reply_lengths(run, report, colours)]
    if report.analysis is not None:
        found += [*_likelihood(run, report), *_shifts(run, report, colours), *_weights(report.analysis, colours)]
    return found


# Gain against forgetting


def _gain_against_forgetting(report: Report, colours: dict[str, str]) -> Iterator[Figure]:
    """One picture for each task benchmark: averages over several would need intervals that nobody computed."""
    forgetting = _drift(report) or _retention_loss(report)
    if forgetting is None:
        return
    x_label, how, xs = forgetting
    for table in report.benchmarks:
        if table.role != "task":
            continue
        row, points = table.main, [charts.Point(display(SEED), "seed", 0.0, 0.0)]
        points += [replace(point, tone=colours[model]) for model, point in tuned_points(row, report.methods, xs)]
        if len(points) == 1:
            continue
        unit = "points" if row.unit == "percent" else row.unit
        edge = charts.frontier(points) if len(points) > 3 else []
        yield Figure(
            name=f"gain-{table.label}",
            title=f"Gain on {table.label} against forgetting",
            svg=charts.scatter(f"Gain on {table.label} against forgetting", points, x_label, f"gain, {unit}", edge),
            caption=f"Up is better on the task, left is closer to the seed. Bars are 95 % intervals. Upwards: "
            f"{metric_name(row)}, paired difference from the seed. To the right: {how}"
            + (" Dashed: the frontier, the points that no other beats in both." if edge else ""),
        )


def tuned_points(row: MetricRow, methods: Sequence[str], xs: Spans) -> Iterator[tuple[str, charts.Point]]:
    """(Method, its point) for those whose gain and forgetting are both known; upwards is better."""
    factor = scale(row.unit) * (-1.0 if row.better == "lower" else 1.0)
    for model in methods:
        pair = row.against(model, SEED)
        if model not in xs or pair is None or pair.difference is None:
            continue
        span = None
        if pair.low is not None and pair.high is not None:
            low, high = sorted((factor * pair.low, factor * pair.high))
            span = (low, high)
        x, x_interval = xs[model]
        yield model, charts.Point(display(model), "c", x, factor * pair.difference, x_interval, span)


def forgetting_of_all(reports: Sequence[Report]) -> tuple[str, str, list[Spans]] | None:
    """How several runs measure forgetting alike, and each one's values; None where they do not."""
    for measure in (_drift, _retention_loss):
        found = [measure(report) for report in reports]
        known = [one for one in found if one is not None]
        if len(known) == len(reports):
            return known[0][0], known[0][1], [xs for _, _, xs in known]
    return None


Spans = dict[str, tuple[float, tuple[float, float] | None]]
"""Model to a value with its interval."""
Forgetting = tuple[str, str, Spans]
"""Axis label, how it is measured, and each model's value."""


def _drift(report: Report) -> Forgetting | None:
    for table in report.benchmarks:
        row = table.main
        if row.from_seed and row.unit == "nats":
            xs = {m: (v.value, _ends(v)) for m, v in row.values.items() if m != SEED and v.value is not None}
            return "drift from the seed, nats per token", f"mean KL on {table.n} general prompts.", xs
    return None


def _ends(value: Value | Difference) -> tuple[float, float] | None:
    return None if value.low is None or value.high is None else (value.low, value.high)


def _retention_loss(report: Report) -> Forgetting | None:
    """Mean loss in points over the retention benchmarks that are rates; their rows are independent."""
    tables = [t for t in report.benchmarks if t.role == "retention" and t.main.unit == "percent"]
    tables = [t for t in tables if t.main.better != "neither" and not t.main.from_seed]
    xs: Spans = {}
    for model in report.methods:
        losses = [loss for table in tables if (loss := _loss(table, model)) is not None]
        if tables and len(losses) == len(tables):
            middle = sum(m for m, _, _ in losses) / len(losses)
            below, above = (math.hypot(*(loss[i] for loss in losses)) / len(losses) for i in (1, 2))
            xs[model] = (middle, (middle - below, middle + above))
    if not xs:
        return None
    what = f"{len(tables)} retention benchmark{'s' if len(tables) > 1 else ''}"
    return "loss on retention, points", f"mean loss over {what} (there is no drift benchmark).", xs


def _loss(table: BenchmarkTable, model: str) -> tuple[float, float, float] | None:
    """Points lost against the seed, and how far its interval reaches below and above."""
    pair = table.main.against(model, SEED)
    if pair is None or pair.difference is None or pair.low is None or pair.high is None:
        return None
    sign = -100.0 if table.main.better == "higher" else 100.0
    middle, one, other = sign * pair.difference, sign * pair.low, sign * pair.high
    return middle, middle - min(one, other), max(one, other) - middle


# Selection


ORDINALS = ("first", "second", "third", "fourth", "fifth")


def ordinal(index: int) -> str:
    """0 → `first`, 5 → `6th`."""
    return ORDINALS[index] if index < len(ORDINALS) else f"{index + 1}th"


def _selection(selection: SelectionFacts) -> Iterator[Figure]:
    total = selection.examples

    def bar(label: str, tone: str, value: int) -> charts.Bar:
        return charts.Bar(label, tone, value, f"{count(value)} · {share(value, total)}")

    rows = [
        bar(f"{ordinal(index)} rewrite taken", "b", value) for index, value in enumerate(selection.accepted_at)
    ] or [bar("rewrite taken", "b", selection.rewritten)]
    rows += [bar(reason.replace("_", " "), "seed", value) for reason, value in selection.refused.items()]
    yield Figure(
        name="selection",
        title="Selection by reason",
        svg=charts.bars("Selection by reason", rows),
        caption=f"What became of {count(total)} examples: {share(selection.rewritten, total)} train on a rewrite "
        f"({share(selection.identical, total)} on one that is equal to the original), "
        f"{share(selection.kept, total)} keep their original reply, by the reason why the last rewrite was refused.",
        legend=(("b", "trains on a rewrite"), ("seed", "original kept, because")),
    )


def _lengths(selection: SelectionFacts) -> Iterator[Figure]:
    length = selection.length
    if length is None or length.histogram is None or not length.histogram.original:
        return
    names = _bin_names(length.histogram)
    pairs = (("original", "seed", length.histogram.original), ("chosen", "b", length.histogram.chosen))
    yield Figure(
        name="lengths",
        title="Length of replies to train on",
        svg=charts.histograms(
            "Words of original and chosen replies",
            names,
            [charts.Series(label, tone, list(enumerate(counts[: len(names)]))) for label, tone, counts in pairs],
            "words",
            "replies",
        ),
        caption=f"Original replies have {number(length.original.mean_words, 'words')} words on average (median "
        f"{number(length.original.median_words, 'words')}), the chosen ones "
        f"{number(length.chosen.mean_words, 'words')} (median {number(length.chosen.median_words, 'words')}).",
        legend=(("seed", "original"), ("b", "chosen")),
    )


def _bin_names(histogram: Histogram) -> list[str]:
    """Each bin's words: `4`, `5–8`; the last is open where no edge ends it. Empty bins at the end are cut."""
    edges, bins = [int(edge) for edge in histogram.edges], len(histogram.original)
    names = []
    for start, end in zip(edges, [*edges[1:], None], strict=True):
        if end is None:
            names.append(f"{start}+")
        else:
            names.append(str(start) if end - start <= 1 else f"{start}\N{EN DASH}{end - 1}")
    counts = [a + b for a, b in zip(histogram.original, histogram.chosen, strict=False)]
    used = max((index + 1 for index, value in enumerate(counts) if value), default=1)
    return names[: min(bins, used, len(names))]


# Training and drift


def _losses(report: Report, colours: dict[str, str]) -> Iterator[Figure]:
    curves = {m: charts.thin_out(t.loss) for m, t in report.training.items() if t.loss}
    if curves:
        yield Figure(
            name="loss",
            title="Training loss",
            svg=charts.lines(
                "Training loss by optimizer step",
                [charts.Series(display(m), colours[m], values) for m, values in curves.items()],
                "optimizer step",
                "loss, nats per token",
            ),
            caption="Loss on the reply's tokens. Methods train on different replies, so a lower curve is not a better "
            "model: replies that the seed wrote itself are easy for it from the start.",
            legend=tuple((colours[m], display(m)) for m in curves),
        )


def _drift_groups(report: Report, colours: dict[str, str]) -> Iterator[Figure]:
    for table in report.benchmarks:
        row = table.main
        if not row.from_seed or not table.groups:
            continue
        models = [m for m in report.methods if m in table.groups]
        names = list(dict.fromkeys(group for m in models for group in table.groups[m]))
        groups = []
        for name in names:
            means = [(m, table.groups[m].get(name, {}).get(row.metric)) for m in models]
            bars = [charts.Bar(display(m), colours[m], v, number(v, row.unit)) for m, v in means if v is not None]
            if bars:
                rows = table.group_rows.get(name)
                groups.append((f"{name} ({rows})" if rows else name, bars))
        groups.sort(key=lambda group: -max(bar.value for bar in group[1]))
        if groups:
            yield Figure(
                name=f"drift-{table.label}",
                title="Drift by kind of prompt",
                svg=charts.grouped_bars("Drift from the seed by kind of prompt", groups, "nats per token"),
                caption="Mean KL from the seed along its own replies. In brackets: prompts of that kind. They are few, "
                "so small differences mean little.",
                legend=tuple((colours[m], display(m)) for m in models),
            )


def _reply_lengths(run: Run, report: Report, colours: dict[str, str]) -> Iterator[Figure]:
    for label, spreads in report.reply_words.items():
        rows = []
        for model in report.models:
            s = spreads.get(model)
            if s is not None:
                words = run.reply_words[label][model]
                dots = [float(n) for n in words[:: math.ceil(len(words) / 120)]]
                rows.append(charts.Box(display(model), colours[model], s.minimum, s.quartiles, s.maximum, s.mean, dots))
        if rows:
            means = ", ".join(f"{display(m)} {number(s.mean, 'words')}" for m in report.models if (s := spreads.get(m)))
            yield Figure(
                name=f"reply-words-{label}",
                title="Length of replies to general prompts",
                svg=charts.boxes("Words of replies to general prompts", rows, "words"),
                caption=f"Box: middle half; stroke: median; diamond: mean; one dot a reply. Mean words: {means}.",
            )


# Analyses


def _likelihood(run: Run, report: Report) -> Iterator[Figure]:
    """Original against distilled replies under the seed: the gap that self-distillation is to close."""
    nll = report.analysis.nll if report.analysis else None
    if nll is None:
        return
    samples, words = [], []
    for fit in nll.replies:
        values = run.nll_values.get((fit.model, fit.variant), [])
        if fit.model != SEED or not values:
            continue
        mean = fit.per_example
        tone = "seed" if fit.variant == "original" else "b"
        note = f"mean {number(mean.value, 'nats')}"
        samples.append(charts.Sample(fit.variant, tone, values, mean.value, (mean.low, mean.high), note))
        words.append(
            f"{fit.variant} replies {quantity(fit.per_token.value, 'nats')} per token (perplexity "
            f"{number(fit.perplexity_per_token.value, 'number')})"
        )
    if len(samples) < 2:
        return
    gap = nll.gaps.get(SEED)
    difference = f" Per example, distilled minus original: {signed(gap.value, 'nats')} nats " if gap else ""
    difference += f"({CONFIDENCE} {signed_interval(gap.low, gap.high, 'nats')})." if gap else ""
    yield Figure(
        name="likelihood",
        title="How unlikely the seed finds the replies to learn",
        svg=charts.overlaid("Negative log-likelihood of replies under the seed", samples, "nats per token", "replies"),
        caption=f"Mean over each reply's tokens, of {count(nll.examples)} examples, {count(nll.rewritten)} of them "
        f"rewritten; the band is the {CONFIDENCE} of the mean. Over all tokens: {', '.join(words)}.{difference}",
        legend=tuple((sample.tone, sample.label) for sample in samples),
    )


LIKENESS = {
    "similarity": "embedding similarity", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L",
    "bleu4_characters": "BLEU-4 of characters", "rouge_l_tokens": "ROUGE-L of tokens",
}  # fmt: skip


def _shifts(run: Run, report: Report, colours: dict[str, str]) -> Iterator[Figure]:
    """Every measure on every benchmark, as the reference's scripts draw them."""
    shifts = report.analysis.shifts if report.analysis else ()
    for label in dict.fromkeys(shift.benchmark for shift in shifts):
        for metric, name in LIKENESS.items():
            samples = []
            for shift in shifts:
                values = run.shift_values.get((label, metric, shift.model), [])
                if shift.benchmark != label or metric not in shift.metrics or not values:
                    continue
                mean = shift.metrics[metric]
                note = f"{mean.value:.2f}"
                tone = colours.get(shift.model, "c")
                samples.append(
                    charts.Sample(display(shift.model), tone, values, mean.value, (mean.low, mean.high), note)
                )
            if samples:
                means = ", ".join(f"{sample.label} {sample.note}" for sample in samples)
                yield Figure(
                    name=f"{metric.replace('_', '-')}-{label}",
                    title=f"Replies to {label} against the seed's: {name}",
                    svg=charts.overlaid(f"{name} of replies to {label} and the seed's", samples, name, "replies"),
                    caption=f"1 is the seed's own reply. Means, with {CONFIDENCE}s as bands: {means}.",
                    legend=tuple((sample.tone, sample.label) for sample in samples),
                )


def _weights(analysis: Analysis, colours: dict[str, str]) -> Iterator[Figure]:
    changes = {method: change for method, change in analysis.weights.items() if change.layers}
    if not changes:
        return
    relative = all(layer.relative is not None for change in changes.values() for layer in change.layers)
    factor, unit = (100.0, "% of the weights' norm") if relative else (1.0, "Frobenius norm")
    series = [
        charts.Series(
            display(method),
            colours.get(method, "c"),
            [(layer.layer, factor * ((layer.relative if relative else layer.norm) or 0.0)) for layer in change.layers],
        )
        for method, change in changes.items()
    ]
    totals = ", ".join(
        f"{display(method)} {number(change.norm, 'number')}"
        + (f" ({100 * change.relative:.2g} % of the weights' norm)" if change.relative is not None else "")
        for method, change in changes.items()
    )
    yield Figure(
        name="weights",
        title="Size of the weight change by layer",
        svg=charts.lines("Size of the weight change by layer", series, "layer", unit),
        caption=f"Norm of the change over each layer's trained weights. Over all of them: {totals}.",
        legend=tuple((s.tone, s.label) for s in series),
    )
