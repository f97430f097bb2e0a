"""What every benchmark is: a frozen settings object that has examples and judges replies to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from sdft.checks import Check
from sdft.console import Console
from sdft.data import load_examples
from sdft.data import missing as missing_data
from sdft.data import unfetched as unfetched_data
from sdft.data.config import DataConfig
from sdft.engines import Sampling
from sdft.errors import BenchmarkError
from sdft.judge import CHARS_PER_TOKEN, JudgeSettings, Question, ask, estimate
from sdft.models import ModelConfig
from sdft.records import Example, Metric, Prediction, Settings, Verdict

__all__ = ["Benchmark", "DatasetBenchmark", "Further", "HarnessBenchmark", "JudgedBenchmark", "Metric"]

Further = tuple[Mapping[str, Mapping[str, float]], list[str]]
"""Values of metrics by row id, and notes."""


class Benchmark(Settings):
    """A subclass adds `name: Literal[...]`, `METRICS`, `examples` and `judge`.

    Subclasses are listed in the union of `sdft.benchmarks`; a test fails for a module that is missing there.
    """

    METRICS: ClassVar[dict[str, Metric]]
    """Metric name → how it is scored; the first is the benchmark's main one."""
    ROLE: ClassVar[Literal["task", "retention"]] = "task"
    """`retention`: measures what fine-tuning should not change."""
    TEMPLATES: ClassVar[dict[str, str]] = {}
    """Prompt style → the template that belongs to this benchmark; other styles use the recipe's `prompt.infer`."""
    JUDGED: ClassVar[tuple[str, ...]] = ()
    """Metrics that `further` gives, where these settings ask for them."""
    KEYWORDS: ClassVar[tuple[str, ...]] = ()
    """Metrics that look for phrases; the report says what such a judge cannot see."""

    PARALLEL: ClassVar[bool] = False
    """Whether replies are judged several at a time; for a `judge` that waits for other processes."""

    label: str | None = Field(default=None, pattern=r"^\w[\w.-]*$")
    """A name for this entry where one benchmark stands twice in a recipe, and its folder's; default: its `name`."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows."""
    sampling: Sampling | None = None
    """Decoding; None: the recipe's `evaluate.sampling`."""
    template: str | None = None
    """A template name or jinja string in place of the benchmark's own or the recipe's `prompt.infer`."""

    @property
    def called(self) -> str:
        """What it is called in a run: its folder under `eval/<model>/`."""
        return self.label or str(getattr(self, "name", ""))

    def examples(self) -> list[Example]:
        """The rows, each with an id that stays the same from run to run. Raises BenchmarkError or DataError."""
        raise NotImplementedError(f"{type(self).__name__} must say which rows it has")

    def template_for(self, style: Literal["chat", "verbatim"]) -> str | None:
        """The template to render these rows with; None: the recipe's `prompt.infer`."""
        return self.template or self.TEMPLATES.get(style)

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The verdict on one reply, and this row's value of each metric of METRICS."""
        raise NotImplementedError(f"{type(self).__name__} must say how it judges a reply")

    def metrics(self) -> dict[str, Metric]:
        """The metrics that these settings ask for, the main one first."""
        return {name: metric for name, metric in self.METRICS.items() if name not in self.JUDGED}

    def combine(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """The rows that scores and comparisons are about: several samples of a problem made one; all as they are."""
        return predictions

    def notes(self, predictions: Sequence[Prediction]) -> Sequence[str]:
        """What a reader of the scores must know of how they came about; `predictions` are all rows, as judged."""
        return ()

    def conflicts(self, sampling: Sampling) -> Sequence[str]:
        """Why these settings make no sense where replies are decoded like this, their own `sampling` or another's."""
        return ()

    def further(
        self, model: str, examples: Sequence[Example], predictions: Sequence[Prediction], folder: Path, console: Console
    ) -> Further:
        """What can be told only when all replies of `model` are there: values of `JUDGED`, and notes.

        Called anew after an interruption; work that is dear is kept in `folder`, beside the predictions.
        """
        return {}, []

    def forecast(self, models: int, sampling: Sampling) -> str | None:
        """What a run will ask of others (a judge, the hub), for so many models and replies of at most this length.

        None: nothing. Asks no one itself.
        """
        return None

    def groups(self, example: Example) -> str | None:
        """A category of this row for tables within the benchmark, or None."""
        return None

    def missing(self) -> Iterator[str]:
        """What this benchmark needs and does not find (package, data), each with how to get it."""
        return iter(())

    def unfetched(self) -> str | None:
        """Data that is not here and will be fetched; None where there is none."""
        return None


class DatasetBenchmark(Benchmark):
    """A dataset and a check: `accuracy` is the share of replies that pass."""

    METRICS: ClassVar[dict[str, Metric]] = {"accuracy": Metric()}
    CHECK: ClassVar[Check]

    def source(self) -> DataConfig:
        """Which rows to read; `limit` is this benchmark's own."""
        raise NotImplementedError(f"{type(self).__name__} must say which dataset it reads")

    def rule(self) -> Check:
        """What a reply must pass to count as right."""
        return self.CHECK

    def examples(self) -> list[Example]:
        """The rows of the dataset. Raises DataError."""
        return load_examples(self.source())

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The check's verdict."""
        verdict = self.rule()(example, reply)
        return verdict, {"accuracy": float(verdict.ok)}

    def missing(self) -> Iterator[str]:
        """The dataset's file or package, where it is not here."""
        problem = missing_data(self.source())
        if problem:
            yield problem

    def unfetched(self) -> str | None:
        """The dataset, where it is not here."""
        return unfetched_data(self.source())


class HarnessBenchmark(Benchmark):
    """Measures a model by itself: it asks no engine for replies, and judges none.

    It loads the recipe's model with transformers, whichever engine the recipe evaluates with. A subclass adds
    `measure` in place of `judge`.
    """

    @model_validator(mode="after")
    def _without_replies(self) -> Self:
        for key in ("sampling", "template"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: has no effect here, for no replies are generated; leave it out")
        return self

    def measure(self, model: ModelConfig, folder: Path, console: Console) -> list[Prediction]:
        """One row for each of `examples`, in that order. Work is kept in `folder`, and gone on with there.

        Raises BenchmarkError, EngineError and ModelError.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it measures a model")

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """Raises BenchmarkError: there is no reply to be judged."""
        raise BenchmarkError(f"{self.label or type(self).__name__}: measures a model, and judges no replies")


class JudgedBenchmark(DatasetBenchmark):
    """A dataset whose replies a judge model judges, too, where the recipe names one.

    A subclass adds `JUDGED`, `questions` and `judged`.
    """

    judge_model: JudgeSettings | None = None
    """The judge: `{model: NAME, base_url: …, api_key_env: …}`. null: none is asked."""

    def metrics(self) -> dict[str, Metric]:
        """All metrics where there is a judge, else those that need none."""
        return self.METRICS if self.judge_model else super().metrics()

    def missing(self) -> Iterator[str]:
        """The data, and what the judge needs."""
        yield from super().missing()
        for what in self.judge_model.missing() if self.judge_model else ():
            yield f"judge_model: {what}"

    def questions(self, example: Example, reply: str) -> tuple[Question, ...]:
        """What to ask the judge about one reply."""
        raise NotImplementedError(f"{type(self).__name__} must say what to ask a judge")

    def judged(
        self, rows: Sequence[tuple[Example, Prediction]], labels: Sequence[Sequence[str]]
    ) -> Mapping[str, Mapping[str, float]]:
        """The values of `JUDGED` by row id, from the judge's answers to each row's questions."""
        raise NotImplementedError(f"{type(self).__name__} must say what the judge's answers are worth")

    def further(
        self, model: str, examples: Sequence[Example], predictions: Sequence[Prediction], folder: Path, console: Console
    ) -> Further:
        """Ask the judge about every reply. Rows without a readable answer get no value."""
        if self.judge_model is None:
            return {}, []
        by_id = {prediction.id: prediction for prediction in predictions if prediction.finish != "error"}
        rows = [(example, by_id[example.id]) for example in examples if example.id in by_id]
        asked = [self.questions(example, prediction.predict) for example, prediction in rows]
        everything = [question for questions in asked for question in questions]
        found, notes = ask(self.judge_model, everything, folder, console, f"{model} on {self.called}")
        read = {question: judgement.label for question, judgement in found.items() if judgement.label is not None}
        whole = [index for index, questions in enumerate(asked) if all(question in read for question in questions)]
        return self.judged(
            [rows[index] for index in whole], [[read[question] for question in asked[index]] for index in whole]
        ), notes

    def longest_questions(self, models: int, sampling: Sampling) -> list[Question]:
        """What the judge would be asked if every reply were as long as it may be."""
        reply = "x" * CHARS_PER_TOKEN * (self.sampling or sampling).max_new_tokens
        return models * [question for example in self.examples() for question in self.questions(example, reply)]

    def forecast(self, models: int, sampling: Sampling) -> str | None:
        """Calls, tokens and cost of the judge, at most."""
        if self.judge_model is None:
            return None
        return f"at most {estimate(self.judge_model, self.longest_questions(models, sampling))}"
