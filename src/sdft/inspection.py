"""What the looking commands do: list, render, rescore, and hold a dataset's own replies to the checks."""

from __future__ import annotations

import itertools
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from sdft.benchmarks import AnyBenchmark, Benchmark, BfclSimple, HarnessBenchmark, ReasoningGym
from sdft.cautions import overlap_lines, overlaps
from sdft.checks import AnyCheck, CallAst, first_failure
from sdft.data import GENERATED, BadRow, DataConfig, iter_examples, registered
from sdft.data.files import read_lines
from sdft.engines import AnyEngine
from sdft.errors import DataError, PromptError, RecipeError
from sdft.models import ModelConfig, load_tokenizer
from sdft.prompts import PromptConfig, Renderer, did_you_mean, named_problems, templates
from sdft.recipe import METHODS, Recipe
from sdft.recipe.files import recipe_files
from sdft.records import Example, Message, Metric, Verdict
from sdft.stats import estimate

Judge = Callable[[Example, str], tuple[Verdict, float]]


def failing_golds(recipe: Recipe) -> tuple[int, list[str], list[str]]:
    """The number of examples, a line for each whose own reply the checks refuse, and one for each row left out.

    Rows are counted from 0, as in `render --rows`. Raises DataError.
    """
    count, failing, bad = 0, list[str](), list[BadRow]()
    for example in iter_examples(recipe.data, bad) if recipe.data else ():
        row = count + len(bad)
        count += 1
        example = example.model_copy(update={"reference": example.reference.strip()})
        verdict = first_failure(recipe.select.checks, example, example.reference)
        if not verdict.ok:
            why = verdict.reason + (f" ({verdict.detail})" if verdict.detail else "")
            failing.append(f"row {row} ({example.id}): {why}: {example.reference[:60]!r}")
    return count, failing, [str(row) for row in bad]


def shared_rows(recipe: Recipe) -> list[str]:
    """A line for each benchmark that asks what the training data holds. Raises DataError."""
    return overlap_lines(overlaps(recipe, iter_examples(recipe.data, []) if recipe.data else ()))


# Rendering


def parse_rows(text: str | None) -> list[range] | None:
    """`0,5-9` as ranges; None: all rows. Raises DataError."""
    if text is None:
        return None
    out = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,15})(?:-([0-9]{1,15}))?", part.strip())
        if found is None:
            raise DataError(f"--rows {text}: '{part}' is neither a row such as 5 nor a range such as 5-9")
        rows = range(int(found[1]), int(found[2] or found[1]) + 1)
        if not rows:
            raise DataError(f"--rows {text}: '{part}' ends before it begins; write {found[2]}-{found[1]}")
        out.append(rows)
    return out


def rendered(
    dataset: str, template: str, rows: list[range] | None, answer: bool, model: str | None, skipped: list[str]
) -> Iterator[str]:
    """JSON lines {row, prompt} and, where asked, `answer`: the reply with what ends it.

    Rows are counted from 0 in the source. Those that cannot be rendered are named in `skipped`.
    Raises DataError, ModelError, and PromptError where no row can be rendered with this template.
    """
    known = templates()
    problems = named_problems(f"--template {template}", template, "chat" if model else "verbatim")
    if problems:
        raise PromptError("; ".join(problems))
    if model is None and template in known and known[template].style == "chat":
        raise PromptError(f"--template {template} is for the model's own chat template; name the model with --model")
    tokenizer = load_tokenizer(ModelConfig(name=model)) if model else None
    renderer = Renderer(PromptConfig(style="chat" if model else "verbatim"), tokenizer)
    bad: list[BadRow] = []
    failed: list[str] = []
    done = 0
    end = None if rows is None else max(part.stop for part in rows)
    count = -1
    for count, example in enumerate(iter_examples(DataConfig(dataset=dataset, on_bad_rows="skip"), bad)):
        row = count + len(bad)
        if end is not None and row >= end:
            break
        if rows is not None and not any(row in part for part in rows):
            continue
        try:
            prompt = renderer.named(example, template)
        except PromptError as error:
            failed.append(f"row {row}: {error}")
            continue
        done += 1
        line = {"row": row, "prompt": prompt.text}
        yield json.dumps(line | ({"answer": example.reference + prompt.end} if answer else {}), ensure_ascii=False)
    if failed and not done:
        raise PromptError(f"--template {template}: not one row can be rendered, of {len(failed)}; {failed[0]}")
    skipped += [*failed, *(str(row) for row in bad)]
    total = count + 1 + len(bad)
    if end is not None and end > total:
        skipped.append(f"rows {total} to {end - 1}: the dataset has {total} rows, counted from 0")


# Rescoring


class PredictedRow(BaseModel):
    """A line of a predictions file in the reference implementation's form; other fields are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    label: str
    predict: str
    meta: dict[str, Any] = {}
    """What some checks need beside the label, such as `accepted` argument values."""


class Judging(NamedTuple):
    """How a predictions file is judged."""

    judge: Judge
    metric: Metric
    """How the judge's values become a score."""
    examples: Callable[[], Mapping[str, Example]]
    """The benchmark's own by id, for what the judge needs beside the label; read where the first row asks for them."""
    wants_accepted: bool
    """Whether the judge goes by accepted argument values, and by the label only without them."""


def judge_of(check: str | None, metric: str | None) -> Judging:
    """What `--check` or `--metric` names. Raises RecipeError."""
    if (check is None) == (metric is None):
        raise RecipeError("give either --check, a name from `sdft list checks`, or --metric BENCHMARK.METRIC")
    if check is not None:
        judged_by = _named("--check", AnyCheck, check)

        def by_check(example: Example, text: str) -> tuple[Verdict, float]:
            verdict = judged_by(example, text)
            return verdict, float(verdict.ok)

        return Judging(by_check, Metric(), dict, isinstance(judged_by, CallAst))
    name, _, wanted = (metric or "").partition(".")
    benchmark = _named("--metric", AnyBenchmark, name)
    wanted = wanted or next(iter(benchmark.METRICS))
    if wanted not in benchmark.METRICS:
        raise RecipeError(f"--metric {metric}: {name} has no '{wanted}'{did_you_mean(wanted, benchmark.METRICS)}")

    def by_benchmark(example: Example, text: str) -> tuple[Verdict, float]:
        verdict, values = benchmark.judge(example, text)
        if wanted not in values:
            raise RecipeError(f"--metric {metric}: cannot be told from a reply alone")
        return verdict, values[wanted]

    wants_accepted = isinstance(benchmark, BfclSimple)
    return Judging(by_benchmark, benchmark.METRICS[wanted], lambda: _examples_of(benchmark), wants_accepted)


def _examples_of(benchmark: Benchmark) -> dict[str, Example]:
    """A benchmark's examples by id; none where its data is not here, or replies do not tell which rows were drawn."""
    if isinstance(benchmark, HarnessBenchmark | ReasoningGym) or any(benchmark.missing()):
        return {}
    if isinstance(benchmark, BfclSimple):
        benchmark = benchmark.model_copy(update={"part": "all"})
    return {example.id: example for example in benchmark.examples()}


class Rescoring:
    """Judges the rows of a predictions file and keeps count."""

    def __init__(
        self, judge: Judge, metric: Metric, examples: Callable[[], Mapping[str, Example]], wants_accepted: bool
    ) -> None:
        self.judge, self.metric, self.examples, self.wants_accepted = judge, metric, examples, wants_accepted
        self.values: list[float] = []
        self.bad: list[str] = []
        self.by_label = 0
        """Rows judged by their label for want of accepted values."""
        self._known: Mapping[str, Example] | None = None

    def lines(self, path: Path) -> Iterator[str]:
        """The file's rows in order, each with `verdict` added; what JSON has no number for becomes null.

        Raises DataError where the file cannot be read, or is empty.
        """
        for number, line in read_lines(path):
            try:
                row = PredictedRow.model_validate_json(line)
                kept = json.loads(line, parse_float=_finite, parse_constant=lambda _: None)
            except ValueError as error:
                self.bad.append(f"{path}:{number}: {_first_problem(error)}")
                continue
            verdict, value = self.judge(self._example(row, number), row.predict)
            self.values.append(value)
            yield json.dumps(kept | {"verdict": verdict.model_dump()}, ensure_ascii=False)
        if not self.values and not self.bad:
            raise DataError(f"{path}: no rows; a row is a line with `label` and `predict`")

    def _example(self, row: PredictedRow, number: int) -> Example:
        """The benchmark's example that the reply is to, where its id and label say so; else one of the row alone."""
        extra = row.model_extra or {}
        identity = extra.get("id")
        if isinstance(identity, str) and not row.meta:
            if self._known is None:
                self._known = self.examples()
            known = self._known.get(identity)
            if known is not None and known.reference == row.label:
                return known
        self.by_label += self.wants_accepted and "accepted" not in row.meta
        turn = Message(role="user", content=str(extra.get("prompt", "")))
        return Example(id=str(number), messages=(turn,), reference=row.label, meta=row.meta)

    def result(self) -> str:
        """The score of all rows so far with its 95 % interval, in words, and what to know of it."""
        if not self.values:
            return "no rows"
        value, (low, high) = estimate(self.metric, self.values)
        times, unit = (100, " %") if self.metric.percent else (1, "")
        return (
            f"{value * times:.2f}{unit} of {len(self.values)} rows "
            f"(95 % interval {low * times:.2f} to {high * times:.2f}{unit})"
            + (f"\nwarning: {self.by_label} {BY_LABEL}" if self.by_label else "")
        )


BY_LABEL = (
    "of them compared with the label alone: they bring no `meta.accepted`, and are not found by `id` and `label` in "
    "the benchmark of a --metric; `sdft eval` accepts more than the label"
)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg']}"


# Listing


def members(union: Any) -> dict[str, type[BaseModel]]:
    """Name → class of a discriminated union of settings."""
    inner = typing.get_args(union)[0]
    classes: tuple[type[BaseModel], ...] = typing.get_args(inner) or (inner,)
    return {typing.get_args(cls.model_fields["name"].annotation)[0]: cls for cls in classes}


def _named(option: str, union: Any, name: str) -> Any:
    known = members(union)
    if name not in known:
        raise RecipeError(f"{option} {name}: there is no such thing{did_you_mean(name, known)}")
    try:
        return known[name].model_validate({"name": name})
    except ValidationError as error:
        missing = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise RecipeError(f"{option} {name}: it needs settings ({missing}); use it in a recipe") from None


def listed(kind: str) -> list[tuple[str, str]]:
    """Name and one line about each thing of a kind that recipes can name."""
    unions = {"checks": AnyCheck, "engines": AnyEngine, "benchmarks": AnyBenchmark}
    if kind in unions:
        return [(name, _first_line(cls)) for name, cls in members(unions[kind]).items()]
    if kind == "datasets":
        read = [(name, f"{entry.description} ({entry.rows} rows)") for name, entry in registered().items()]
        return [*read, *GENERATED.items()]
    if kind == "templates":
        return [(name, f"{template.style}: {template.description}") for name, template in templates().items()]
    if kind == "methods":
        return list(METHODS.items())
    return [(name, _comment(path)) for name, path in recipe_files().items()]


def _comment(path: Path) -> str:
    """The first sentence of the comment on top of a file."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=\.) ", " ".join(line[2:] for line in lines))[0]


def _first_line(cls: type[BaseModel]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
