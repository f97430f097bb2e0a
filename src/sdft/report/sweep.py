"""The table and the curves over the runs of a sweep: from their files alone, as HTML, markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.report import charts, units
from sdft.report.figures import Figure, tones
from sdft.report.page import assets, environment
from sdft.report.parts import ModelScores, Role
from sdft.report.schema import Fact
from sdft.report.source import SEED
from sdft.report.text import markdown
from sdft.report.units import Unit, unit_of
from sdft.report.verdict import display
from sdft.rundir import read_json
from sdft.stats import t_interval

if TYPE_CHECKING:
    from sdft.records import Score


class SweepPoint(Fact):
    """One run of a sweep."""

    settings: dict[str, str]
    """Swept key to value, as they were written; the seed is apart."""
    seed: int
    run: str
    """Its folder within the sweep's."""
    finished: bool


class SweepScore(Fact):
    """One metric of one model at one setting, over the seeds that are finished."""

    settings: dict[str, str]
    model: str
    benchmark: str
    """Its label in the recipe."""
    role: Role
    metric: str
    main: bool
    unit: Unit
    better: str
    value: float
    """The mean over seeds, as stored: a rate of 0.52 is 52 %."""
    low: float
    """95 %: Student's t over seeds; for one seed, or seeds that change nothing, the run's own, over its test rows."""
    high: float
    seeds: list[int]
    n: int
    """Test rows of one run."""


class Sweep(Fact):
    """`sweep.json`."""

    name: str
    keys: list[str]
    """Swept keys, the seed not among them."""
    seeds: list[int]
    points: list[SweepPoint]
    scores: list[SweepScore]

    @property
    def models(self) -> list[str]:
        """The seed model, then the methods, as far as they have scores."""
        return list(dict.fromkeys(score.model for score in self.scores))

    @property
    def settings(self) -> list[dict[str, str]]:
        """Every combination of values, in order."""
        return [dict(pairs) for pairs in dict.fromkeys(tuple(point.settings.items()) for point in self.points)]

    def at(self, settings: dict[str, str], model: str, benchmark: str, metric: str) -> SweepScore | None:
        """One score, or None where no run has it yet."""
        wanted = (settings, model, benchmark, metric)
        return next((s for s in self.scores if (s.settings, s.model, s.benchmark, s.metric) == wanted), None)

    @property
    def measures(self) -> list[SweepScore]:
        """One score of each benchmark's metrics, to name it by: main metrics first."""
        found: dict[tuple[str, str], SweepScore] = {}
        for score in self.scores:
            found.setdefault((score.benchmark, score.metric), score)
        return sorted(found.values(), key=lambda s: (not s.main, s.role != "task"))


def aggregate(folder: Path, points: Iterable[SweepPoint], methods: Iterable[str]) -> list[SweepScore]:
    """The scores of the finished runs, over their seeds."""
    rows: dict[tuple[Any, ...], list[tuple[int, ModelScores, Score]]] = {}
    for point in points:
        for model in (SEED, *methods) if point.finished else ():
            for path in sorted((folder / point.run / "eval" / model).glob("*/scores.json")):
                scores = ModelScores.model_validate(read_json(path))
                for score in scores.scores:
                    key = (tuple(point.settings.items()), model, scores.label, score.metric)
                    rows.setdefault(key, []).append((point.seed, scores, score))
    return [_over_seeds(dict(key[0]), key[1], key[2], found) for key, found in rows.items()]


def _over_seeds(
    settings: dict[str, str], model: str, label: str, found: Sequence[tuple[int, ModelScores, Score]]
) -> SweepScore:
    _, scores, first = found[0]
    values = [score.value for _, _, score in found]
    low, high = t_interval(values) if len(set(values)) > 1 else (first.low, first.high)
    if first.kind == "rate":
        low, high = max(0.0, low), min(1.0, high)
    return SweepScore(
        settings=settings,
        model=model,
        benchmark=label,
        role=scores.role,
        metric=first.metric,
        main=first.metric == scores.main,
        unit=unit_of(first.model_copy(update={"benchmark": scores.benchmark})),
        better=first.better,
        value=sum(values) / len(values),
        low=low,
        high=high,
        seeds=[seed for seed, _, _ in found],
        n=first.n,
    )


def named(settings: dict[str, str]) -> str:
    """`train.distilled_fraction=0.5, train.epochs=2`; `all` where nothing but the seed is swept."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "all"


def told(score: SweepScore | None) -> str:
    """`41.3 % (35.1 to 47.8; 3 seeds)`."""
    if score is None:
        return units.ABSENT
    seeds = f"; {len(score.seeds)} seeds" if len(score.seeds) > 1 else ""
    return (
        f"{units.quantity(score.value, score.unit)} ({units.interval(score.low, score.high, score.unit)}{seeds})"
    )  # fmt: skip


def note(sweep: Sweep) -> str:
    """What the intervals are."""
    done, of = sum(point.finished for point in sweep.points), len(sweep.points)
    runs = f"{done} of {of} runs are finished. " if done < of else ""
    if len(sweep.seeds) > 1:
        return (
            f"{runs}Means over seeds {', '.join(map(str, sweep.seeds))}; in brackets 95 % intervals over seeds (t; "
            "where all seeds agree to the last digit, one run's interval over its test rows)."
        )
    return f"{runs}One seed: in brackets 95 % intervals over the test rows, which do not speak of other seeds."


def render_markdown(sweep: Sweep) -> str:
    """A table for each metric: a row for each setting, a column for each model."""
    lines = [f"# {markdown(sweep.name)}", "", note(sweep)]
    for measure in sweep.measures:
        lines += ["", f"## {markdown(measure.benchmark)}, {markdown(measure.metric)} (n = {measure.n})", ""]
        lines += [f"| {' | '.join(map(markdown, sweep.keys or ['setting']))} |" + _heads(sweep)]
        lines += ["|" + "---|" * max(1, len(sweep.keys)) + "---:|" * len(sweep.models)]
        for settings in sweep.settings:
            cells = [markdown(value) for value in settings.values()] or ["all"]
            cells += [told(sweep.at(settings, m, measure.benchmark, measure.metric)) for m in sweep.models]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _heads(sweep: Sweep) -> str:
    return "".join(f" {markdown(display(model))} |" for model in sweep.models)


def render_html(sweep: Sweep) -> str:
    """The whole page, self-contained."""
    from markupsafe import Markup

    tables = [
        (measure, [(s, [told(sweep.at(s, m, measure.benchmark, measure.metric)) for m in sweep.models])
                   for s in sweep.settings])
        for measure in sweep.measures
    ]  # fmt: skip
    return environment().get_template("sweep.html.j2").render(
        sweep=sweep,
        note=note(sweep),
        assets=assets(),
        figures=[(figure, Markup(figure.svg)) for figure in _figures(sweep)],
        tables=tables,
        tones=tones(tuple(sweep.models)),
        display=display,
    )  # fmt: skip


def _figures(sweep: Sweep) -> Iterator[Figure]:
    """For each main metric a curve over the first key, and one picture for each setting of the other keys."""
    colours = tones(tuple(sweep.models))
    first, others = (sweep.keys or [""])[0], sweep.keys[1:]
    slices: dict[tuple[tuple[str, str], ...], list[dict[str, str]]] = {}
    for settings in sweep.settings:
        slices.setdefault(tuple((key, settings[key]) for key in others), []).append(settings)
    for measure in (m for m in sweep.measures if m.main):
        factor = units.scale(measure.unit)
        for place, (fixed, along) in enumerate(slices.items()):
            series = []
            for model in sweep.models:
                scores = [sweep.at(s, model, measure.benchmark, measure.metric) for s in along]
                if any(scores):
                    values = [(factor * s.value, factor * s.low, factor * s.high) if s else None for s in scores]
                    series.append(charts.Track(display(model), colours[model], values))
            at = f" at {named(dict(fixed))}" if fixed else ""
            title = f"{measure.benchmark}, {measure.metric}{at}"
            yield Figure(
                name=f"curve-{measure.benchmark}-{place}",
                title=title,
                svg=charts.tracks(
                    title, [s.get(first, "all") for s in along], series, first, _axis(measure)
                ),
                caption="Values in the order given, evenly spaced; bars are 95 % intervals.",
                legend=tuple((track.tone, track.label) for track in series),
            )  # fmt: skip


def _axis(measure: SweepScore) -> str:
    names = {"percent": "%", "nats": "nats per token", "words": "words"}
    arrow = {"higher": " (more is better)", "lower": " (less is better)"}.get(measure.better, "")
    return f"{names.get(measure.unit, measure.metric)}{arrow}"
