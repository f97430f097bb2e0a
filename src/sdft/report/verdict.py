"""The verdict in plain words. It never says more than the 95 % intervals of the paired differences do.

A difference whose interval includes 0 is "within noise": the run does not show it, which is not to say that
there is none. A difference without an interval is told as two numbers, without a judgement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdft.report.schema import BenchmarkTable, Difference, MetricRow, Statement, Summary, Tone
from sdft.report.source import SEED
from sdft.report.units import CONFIDENCE, difference, interval, number, quantity, signed_interval

NAMES = {SEED: "Seed", "sft": "Vanilla fine-tuning", "sdft": "SDFT"}
VANILLA, DISTILLED = "sft", "sdft"

OPEN_NOISE = 6
"""Statements of differences within noise that are shown without a click."""
OPEN_NOTES = 8

Tables = tuple[BenchmarkTable, ...]


def display(model: str) -> str:
    """A model's name in sentences and tables."""
    return NAMES.get(model, model)


def within(model: str) -> str:
    """A model's name inside a sentence."""
    name = display(model)
    return name[0].lower() + name[1:] if name in ("Seed", "Vanilla fine-tuning") else name


def metric_name(row: MetricRow) -> str:
    """A metric's name in sentences and tables."""
    if row.unit == "nats" and row.from_seed:
        return "KL from the seed"
    return {"same_argmax": "same likeliest token"}.get(row.metric, row.metric.replace("_", " "))


def folded(statements: Sequence[Statement]) -> tuple[list[Statement], list[Statement]]:
    """Statements to show, and those within noise that are put away where they are many: they hide the others."""
    noise = [s for s in statements if s.tone == "noise"]
    if len(noise) <= OPEN_NOISE:
        return list(statements), []
    return [s for s in statements if s.tone != "noise"], noise


def conclude(tables: Tables, methods: tuple[str, ...]) -> Summary:
    """The verdict on all benchmarks."""
    tuned = [m for m in methods if any(m in row.values for table in tables for row in table.metrics)]
    if not tables:
        return Summary(headline="Nothing has been evaluated, so there is nothing to conclude yet.", statements=())
    if not tuned:
        return Summary(headline="Only the seed model has been evaluated, so nothing can be compared.", statements=())
    statements = [s for table in tables for s in _against_seed(table, tuned)]
    if DISTILLED in tuned and VANILLA in tuned:
        statements += [s for table in tables for s in _between(table)]
    return Summary(headline=" ".join(_headline(tables, tuned)), statements=tuple(statements))


# Each method against the seed


def _against_seed(table: BenchmarkTable, tuned: list[str]) -> Iterator[Statement]:
    for row in _telling(table):
        for model in (model for model in tuned if model in row.values):
            if _is_minor(table, row) and not _is_told(row.against(model, SEED)):
                continue
            tone, text = _distance(table, row, model) if row.from_seed else _change(table, row, model)
            yield Statement(topic=table.role, model=model, tone=tone, text=text)


def _telling(table: BenchmarkTable) -> list[MetricRow]:
    """The main metric, and the others but distances from the seed."""
    return [table.main, *(row for row in table.metrics if row is not table.main and not row.from_seed)]


def _is_minor(table: BenchmarkTable, row: MetricRow) -> bool:
    """Whether only a change beyond noise is worth a sentence: of a task's metric that is not the main one."""
    return table.role == "task" and row is not table.main


def _is_told(pair: Difference | None) -> bool:
    return pair is not None and pair.significant and pair.better is not None


def _change(table: BenchmarkTable, row: MetricRow, model: str) -> tuple[Tone, str]:
    name, what = display(model), _what(table, row)
    after, before = row.values[model].value, row.values[SEED].value if SEED in row.values else None
    if before is None or after is None:
        return "plain", f"{name}: {what} {quantity(after, row.unit)}; the seed's is not known."
    shown = quantity if row.unit == "percent" else number
    span = f"from {shown(before, row.unit)} to {quantity(after, row.unit)}"
    pair = row.against(model, SEED)
    if pair is None or pair.low is None or pair.high is None:
        return "plain", f"{name}: {what} went {span}; no interval of the difference was computed."
    gap = f"({difference(pair.difference, row.unit)}, {_interval(pair, row)})"
    if not pair.significant:
        return "noise", f"{name}: {what} went {span} {gap}: within noise."
    more, less = ("lengthened", "shortened") if row.unit == "words" else ("raised", "lowered")
    return _tone(pair), f"{name} {more if pair.low > 0 else less} {what} {span} {gap}{_aside(row, pair)}."


def _what(table: BenchmarkTable, row: MetricRow) -> str:
    """What is measured, inside a sentence."""
    return f"replies to {table.label} prompts" if row.unit == "words" else f"{table.label} {metric_name(row)}"


def _aside(row: MetricRow, pair: Difference) -> str:
    """Says which way is good where raising it is not."""
    if row.better == "lower":
        return ", which is better" if pair.better else ", which is worse"
    return ""


def _distance(table: BenchmarkTable, row: MetricRow, model: str) -> tuple[Tone, str]:
    """A metric that is a distance from the seed: there is no difference to test."""
    score = row.values[model]
    span = ""
    if score.low is not None and score.high is not None:
        span = f" ({CONFIDENCE} {interval(score.low, score.high, row.unit)})"
    if row.unit == "nats":
        return "plain", f"{display(model)} drifted {quantity(score.value, row.unit)} per token from the seed{span}."
    return "plain", f"{display(model)}: {table.label} {metric_name(row)} {quantity(score.value, row.unit)}{span}."


# SDFT against vanilla


def _between(table: BenchmarkTable) -> Iterator[Statement]:
    for row in _telling(table):
        pair = row.against(DISTILLED, VANILLA)
        if pair is None or pair.low is None or pair.high is None:
            continue
        if _is_minor(table, row) and not _is_told(pair):
            continue
        ours, theirs = row.values.get(DISTILLED), row.values.get(VANILLA)
        values = f"{number(ours.value, row.unit)} against {quantity(theirs.value, row.unit)}" if ours and theirs else ""
        gap = f"{difference(pair.difference, row.unit)}, {_interval(pair, row)}"
        if not pair.significant:
            text = f"{_capital(_what(table, row))}: the two are within noise of each other, {values} ({gap})."
            yield Statement(topic="methods", model=DISTILLED, tone="noise", text=text)
            continue
        text = f"{_side(table, row, pair)} vanilla fine-tuning: {values} ({gap})."
        yield Statement(topic="methods", model=DISTILLED, tone=_tone(pair), text=text)


def _side(table: BenchmarkTable, row: MetricRow, pair: Difference) -> str:
    """On which side of vanilla fine-tuning SDFT stands, beyond noise."""
    above = pair.low is not None and pair.low > 0
    if row.unit == "words":
        return f"SDFT writes {'longer' if above else 'shorter'} replies to {table.label} prompts than"
    if row.unit == "nats" and row.from_seed:
        return f"SDFT drifted {'further' if above else 'less'} from the seed than"
    stands = "stands above" if above else "stands below"
    verb = {True: "does better than", False: "gives something up against", None: stands}[pair.better]
    return f"On {_what(table, row)} SDFT {verb}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tone(pair: Difference) -> Tone:
    return "plain" if pair.better is None else "good" if pair.better else "bad"


def _interval(pair: Difference, row: MetricRow) -> str:
    assert pair.low is not None and pair.high is not None
    return f"{CONFIDENCE} {signed_interval(pair.low, pair.high, row.unit)}"


# The headline


def _headline(tables: Tables, tuned: list[str]) -> Iterator[str]:
    tasks = [table for table in tables if table.role == "task"]
    if tasks:
        yield _task_sentence(tasks, tuned)
    if VANILLA in tuned and DISTILLED in tuned:
        yield from _drift_sentence(tables)
        yield from _price_sentence(tasks)
    yield from _loss_sentence(tables, tuned)


def _task_sentence(tasks: list[BenchmarkTable], tuned: list[str]) -> str:
    outcomes = {model: _outcome(tasks, model) for model in tuned}
    if len(set(outcomes.values())) == 1 and len(tuned) > 1:
        each = "Both methods" if len(tuned) == 2 else "All methods"
        return f"{each} {next(iter(outcomes.values()))}."
    text = "; ".join(f"{within(model)} {outcome}" for model, outcome in outcomes.items())
    return f"{_capital(text)}."


def _outcome(tasks: list[BenchmarkTable], model: str) -> str:
    pairs = [pair for table in tasks if (pair := table.main.against(model, SEED)) is not None]
    better, worse = sum(p.better is True for p in pairs), sum(p.better is False for p in pairs)
    task = "task" if len(tasks) == 1 else "tasks"
    if not pairs:
        return f"showed nothing on the {task} that could be tested, for want of paired differences"
    if better == len(tasks):
        return f"improved on the {task}"
    if worse == len(tasks):
        return f"got worse on the {task}"
    if not better and not worse:
        return f"showed no change on the {task} beyond noise"
    parts = [f"improved on {better}"] if better else []
    parts += [f"got worse on {worse}"] if worse else []
    return f"{' and '.join(parts)} of {len(tasks)} tasks"


def _drift_sentence(tables: Tables) -> Iterator[str]:
    for table in tables:
        row = table.main
        pair = row.against(DISTILLED, VANILLA)
        if table.role != "retention" or not row.from_seed or pair is None:
            continue
        ours, theirs = row.values.get(DISTILLED), row.values.get(VANILLA)
        if ours is None or theirs is None:
            continue
        values = f"{number(ours.value, row.unit)} against {quantity(theirs.value, row.unit)}"
        values += " per token" if row.unit == "nats" else ""
        if not pair.significant:
            yield f"How far the two drifted from the seed differs only within noise ({values})."
        elif pair.better:
            yield f"SDFT stayed closer to the seed than vanilla fine-tuning: {values}."
        else:
            yield f"SDFT drifted further from the seed than vanilla fine-tuning: {values}."


def _price_sentence(tasks: list[BenchmarkTable]) -> Iterator[str]:
    pairs = [(table, p) for table in tasks if (p := table.main.against(DISTILLED, VANILLA)) is not None]
    lost = [f"{_size(t.main, p)} on {t.label}" for t, p in pairs if p.better is False]
    won = [f"{_size(t.main, p)} on {t.label}" for t, p in pairs if p.better is True]
    if lost:
        yield f"Against vanilla fine-tuning SDFT gives up {_and(lost)}."
    if won:
        yield f"Against vanilla fine-tuning SDFT gains {_and(won)}."
    if pairs and not lost and not won:
        yield f"On the {'task' if len(tasks) == 1 else 'tasks'} the two are within noise of each other."


def _size(row: MetricRow, pair: Difference) -> str:
    return difference(abs(pair.difference or 0.0), row.unit).lstrip("+")


def _loss_sentence(tables: Tables, tuned: list[str]) -> Iterator[str]:
    """What got worse beyond noise on retention benchmarks other than the drift from the seed."""
    tested = [(table, row) for table in tables if table.role == "retention" for row in table.metrics]
    tested = [(table, row) for table, row in tested if not row.from_seed and row.better != "neither"]
    losses = {
        model: [table.label for table, row in tested if (p := row.against(model, SEED)) and p.better is False]
        for model in tuned
    }
    for model, labels in losses.items():
        if labels:
            yield f"{display(model)} lost on {_and(list(dict.fromkeys(labels)))}."
    compared = any(row.against(model, SEED) for _, row in tested for model in tuned)
    if compared and not any(losses.values()):
        yield "No retention benchmark shows a loss beyond noise."


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
