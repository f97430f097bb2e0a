"""`report.json`: every number of a report, in a form that other programs can rely on."""

from __future__ import annotations

import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdft.report.parts import Nll, ReplyShift, Role, Selection, Training, WeightChange
from sdft.report.source import SEED
from sdft.report.units import Unit

Tone = Literal["good", "bad", "noise", "plain"]
Topic = Literal["task", "retention", "methods"]


class Fact(BaseModel):
    """Base of all parts of `report.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Statement(Fact):
    """One sentence of the verdict."""

    topic: Topic
    """`task`: what was gained; `retention`: what was lost elsewhere; `methods`: SDFT against vanilla."""
    model: str
    """The tuned model that it is about."""
    tone: Tone
    """`good` and `bad` only where the 95 % interval of the paired difference excludes 0; `noise` where it
    includes 0; `plain` for a measurement that is no difference, or has no interval."""
    text: str


class Summary(Fact):
    """The verdict in plain words."""

    headline: str
    statements: tuple[Statement, ...]


class Value(Fact):
    """One model's score on one metric, with its 95 % interval, as stored: a rate of 0.52 is 52 %."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Difference(Fact):
    """A paired difference, model minus baseline, as stored: 0.4 is 40 points for a metric in percent."""

    model: str
    baseline: str
    difference: float | None
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    n: int
    p_value: float | None
    """McNemar's exact p for rates, null for means."""
    significant: bool
    """Whether the interval excludes 0."""
    better: bool | None
    """Whether a significant difference is for the better; null where it is not significant, or neither."""


class MetricRow(Fact):
    """One metric of one benchmark over all models."""

    metric: str
    unit: Unit
    """`percent`: shown times 100."""
    better: Literal["higher", "lower", "neither"]
    main: bool
    """Whether it is the benchmark's main metric."""
    from_seed: bool
    """Whether the metric itself measures the distance from the seed, as the KL does."""
    values: dict[str, Value]
    """By model."""
    differences: tuple[Difference, ...] = ()
    """Of tuned models from the seed, and of one method from another."""

    @property
    def n(self) -> int:
        """Rows that it was measured on: part of the benchmark's where it is about a part, as one task of several."""
        return max((value.n for value in self.values.values()), default=0)

    def against(self, model: str, baseline: str) -> Difference | None:
        """The paired difference of two models, or None where it was not computed."""
        return next((d for d in self.differences if (d.model, d.baseline) == (model, baseline)), None)


class BenchmarkTable(Fact):
    """One benchmark over all models."""

    label: str
    benchmark: str
    role: Role
    n: int
    """Rows."""
    sampling: dict[str, Any]
    """How replies were decoded; temperature 0 is greedy."""
    metrics: tuple[MetricRow, ...]
    groups: dict[str, dict[str, dict[str, float | None]]]
    """Model to group to metric to mean."""
    group_rows: dict[str, int]
    """Rows of each group, where they were counted."""
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> MetricRow:
        """The main metric's row."""
        return next((row for row in self.metrics if row.main), self.metrics[0])


class SelectionFacts(Selection):
    """`select/summary.json`, and why originals were kept."""

    refused: dict[str, int]
    """Reason to examples that keep their original, commonest first."""


class TrainingFacts(Training):
    """`train/<method>/training.json`, and the loss curve."""

    loss: list[tuple[int, float]]
    """(Optimizer step, training loss)."""


class Spread(Fact):
    """Words of the replies of one model to one benchmark's prompts."""

    n: int
    mean: float
    minimum: float
    quartiles: tuple[float, float, float]
    maximum: float


class Analysis(Fact):
    """What the stage `analyze` measured."""

    nll: Nll | None
    """The gap between the dataset and the model; null where it was not measured."""
    shifts: tuple[ReplyShift, ...]
    """By tuned model and benchmark."""
    weights: dict[str, WeightChange]
    """By method."""


class ManifestFacts(Fact):
    """`manifest.json`, in parts."""

    sha256: str | None
    """Of the file `manifest.json`."""
    versions: dict[str, Any]
    hardware: dict[str, Any]
    hashes: dict[str, str]
    """File of the run folder to sha256."""
    seed: int | None
    durations: dict[str, float]
    """Stage to seconds."""


class Report(Fact):
    """A whole report."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning or goes; new fields do not raise it."""
    name: str
    seed_model: str | None
    dataset: str | None
    rows: int | None
    """Training examples."""
    created: str | None
    sdft: str | None
    """Version of sdft that made the run."""
    methods: tuple[str, ...]
    verdict: Summary
    notes: tuple[str, ...]
    """Warnings that the stages wrote down."""
    missing: tuple[str, ...]
    """Parts of the run folder that are not there or cannot be read."""
    benchmarks: tuple[BenchmarkTable, ...]
    """Task benchmarks first."""
    selection: SelectionFacts | None
    training: dict[str, TrainingFacts]
    """By method."""
    reply_words: dict[str, dict[str, Spread]] = Field(default_factory=dict)
    """Drift benchmark to model to the lengths of its replies."""
    analysis: Analysis | None = None
    manifest: ManifestFacts

    @property
    def models(self) -> tuple[str, ...]:
        """The models that were evaluated: the seed, then the methods."""
        seen = {model for table in self.benchmarks for row in table.metrics for model in row.values}
        return tuple(m for m in (SEED, *self.methods) if m in seen)


REPORT_JSON = (__doc__ or "").strip()


def document(root: type[BaseModel] = Report, intro: str = REPORT_JSON, told: type[BaseModel] | None = None) -> str:
    """The schema of a file as markdown, one table for each part, but those of `told`, which has a page of its own.

    `intro` begins with the file's name in backticks.
    """
    lines = [f"# {intro.split('`')[1]}", "", intro, ""]
    lines += ["Numbers that could not be computed are null. Intervals are at 95 %."]
    elsewhere = _tree(told) if told else []
    for model in _tree(root):
        if model in elsewhere:
            continue
        doc = (model.__doc__ or "").strip().splitlines()[0]
        lines += ["", f"## {model.__name__}", "", doc, "", "| field | type | meaning |", "|---|---|---|"]
        for name, info in model.model_fields.items():
            kind = typing.get_type_hints(model)[name]
            meaning = " ".join((info.description or "").split())
            lines.append(f"| `{name}` | {_type_name(kind)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _tree(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all that it is made of, outer ones first."""
    found = [root]
    for model in found:  # grows while it is walked
        kinds = typing.get_type_hints(model)
        for part in (part for name in model.model_fields for part in _parts(kinds[name])):
            found += [part] * (part not in found)
    return found


def _parts(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [part for inner in typing.get_args(kind) for part in _parts(inner)]


def _type_name(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (tuple, list):
        kinds = dict.fromkeys(_type_name(part) for part in inner if part is not Ellipsis)
        return f"list of {', '.join(kinds)}"
    if origin is dict:
        return f"{{{_type_name(inner[0])}: {_type_name(inner[1])}}}"
    if inner:
        return " or ".join(_type_name(part) for part in inner)
    names = {str: "text", float: "number", int: "integer", bool: "boolean", Any: "any"}
    return names.get(kind) or str(kind.__name__)
