"""The JSON files of a run folder, as far as the report reads them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sdft.records import Score

Role = Literal["task", "retention"]


class Part(BaseModel):
    """A JSON file that a stage wrote. Fields that the report does not use are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class LengthStats(Part):
    """Words of a reply over a dataset."""

    mean_words: float
    median_words: float


class Histogram(Part):
    """Counts of replies by length, for the originals and for what was chosen."""

    edges: list[float]
    """Words at which bins begin, increasing; the last may be the end of the last bin."""
    original: list[int]
    chosen: list[int]


class Lengths(Part):
    """How long replies are before and after selection."""

    original: LengthStats
    chosen: LengthStats
    histogram: Histogram | None = None


class Selection(Part):
    """`select/summary.json`."""

    examples: int
    rewritten: int
    """Examples that train on a rewrite."""
    kept: int
    """Examples that keep their original reply."""
    identical: int = 0
    """Chosen rewrites that are equal to the original; part of `rewritten`."""
    share_rewritten: float
    reasons: dict[str, int] = {}
    """Reason to examples, by each example's final verdict."""
    candidate_reasons: dict[str, int] = {}
    """Reason to candidates, over all that were judged."""
    accepted_at: list[int] = []
    """Examples accepted at the first candidate, at the second …"""
    length: Lengths | None = None


class Training(Part):
    """`train/<method>/training.json`."""

    method: str
    rows: int | None = None
    tokens: int | None = None
    supervised_tokens: int | None = None
    """Tokens that carry loss: the replies'."""
    truncated: int | None = None
    skipped: int | None = None
    data_sha256: str | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None


class Estimate(Part):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class ReplyFit(Part):
    """How unlikely one model finds the replies of one kind, given the plain prompt; in nats."""

    model: str
    variant: Literal["original", "distilled"]
    """`distilled`: the chosen replies, originals among them where no rewrite was taken."""
    examples: int
    tokens: int
    """Of the replies, with what ends them."""
    per_token: Estimate
    """Negative log-likelihood, all tokens alike; the interval draws whole replies."""
    per_example: Estimate
    """All replies alike, each by the mean over its tokens."""
    perplexity_per_token: Estimate
    """exp of `per_token`."""
    perplexity_per_example: Estimate


class Nll(Part):
    """`analyze/nll.json`: the gap between the dataset and the model."""

    examples: int
    rewritten: int
    """Examples whose two replies differ."""
    replies: tuple[ReplyFit, ...]
    gaps: dict[str, Estimate] = {}
    """Model to the paired difference distilled - original, per example, in nats."""


class ReplyShift(Part):
    """How like one tuned model's replies to a benchmark are to the seed's."""

    model: str
    benchmark: str
    rows: int
    metrics: dict[str, Estimate]
    """Means of `similarity` (cosine of embeddings), `bleu4`, `rouge_l`, `bleu4_characters` and `rouge_l_tokens`, as
    far as measured; 1 is equal."""


class Shifts(Part):
    """`analyze/shift.json`."""

    replies: tuple[ReplyShift, ...]


class LayerChange(Part):
    """The weight change of one layer."""

    layer: int
    norm: float
    """Frobenius norm of the change over the layer's trained weights."""
    relative: float | None
    """Divided by the norm of those weights before."""


class WeightChange(Part):
    """The weight change of one method."""

    norm: float
    relative: float | None
    layers: tuple[LayerChange, ...]


class WeightChanges(Part):
    """`analyze/weights.json`."""

    methods: dict[str, WeightChange]


class ModelScores(Part):
    """`eval/<model>/<label>/scores.json`."""

    model: str
    benchmark: str
    label: str
    role: Role
    n: int
    sampling: dict[str, Any] = {}
    main: str
    scores: tuple[Score, ...]
    groups: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()


class Manifest(Part):
    """`manifest.json`."""

    sdft: str | None = None
    name: str | None = None
    created: str | None = None
    recipe: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    seed: int | None = None
    durations: dict[str, float] = {}
    notes: tuple[str, ...] = ()
