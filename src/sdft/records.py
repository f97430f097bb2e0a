"""The records that stages exchange. Frozen; unknown fields are refused.

They are joined by example id, never by position. Absence is None or a reason, never a sentinel number.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """One line of a JSONL file in a run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(BaseModel):
    """One section of a recipe. Unknown keys are refused, and so are silent conversions such as "5" to 5."""

    # built at first use: fast start-up
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def named(value: Any) -> Any:
    """A plain string as `{"name": string}`, as recipes may write settings that have a name; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


Role = Literal["system", "user", "assistant"]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Example(Record):
    """One training or test example.

    `messages` is everything before the reply that is to be learnt: an optional system turn, earlier turns,
    and the user's last turn. `reference` is the dataset's own last reply.
    """

    id: str
    """The dataset's own id, or a stable hash of the content."""
    messages: tuple[Message, ...]
    reference: str
    meta: dict[str, Any] = {}
    """`row`: the source row as it was read; `reply_column`: where the reply stands in it; and what a
    check or benchmark needs beside the reference (`accepted`: accepted argument values of a call)."""

    @property
    def instruction(self) -> str:
        """The user's last turn."""
        return self.messages[-1].content

    @property
    def system(self) -> str | None:
        """The system text of the conversation, or None."""
        return self.messages[0].content if self.messages[0].role == "system" else None

    @property
    def history(self) -> tuple[Message, ...]:
        """The turns between the system text and the user's last turn."""
        return self.messages[(1 if self.system is not None else 0) : -1]


Finish = Literal["stop", "length", "error"]


class Completion(Record):
    """What an engine generated for one request."""

    id: str
    """The request's id."""
    text: str
    """The reply without prompt, stop string or special tokens."""
    finish: Finish
    """`stop`: the model ended it; `length`: cut at `max_new_tokens`; `error`: see `error`."""
    prompt_tokens: int
    tokens: int
    """Generated tokens, the end token included."""
    error: str | None = None


class Rewrite(Record):
    """One candidate reply for one example; a line of `distill/rewrites.jsonl`."""

    example_id: str
    candidate: int
    """0 for the first, 1 for the second …"""
    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int
    error: str | None = None
    thought: str = ""
    """What a thinking model wrote in `<think>…</think>` before the text."""


class Verdict(Record):
    """A check's or a benchmark's judgement of one reply."""

    ok: bool
    reason: str
    """A slug that is counted and tabulated, such as `ok`, `number_differs`, `leak`."""
    detail: str = ""
    """What a person wants to see beside the reason, such as `57 != 75`."""


class CandidateVerdict(Record):
    """One candidate with its verdict, as kept in a choice for auditing."""

    candidate: int
    text: str
    verdict: Verdict


class Choice(Record):
    """What one example trains on; a line of `select/choices.jsonl`."""

    example_id: str
    response: str
    """The text that the method `sdft` trains on."""
    source: Literal["rewrite", "original"]
    verdict: Verdict
    """Of the chosen candidate, or of the last one that failed."""
    candidate: int | None
    """The chosen candidate, None where the original stays."""
    original: str
    candidates: tuple[CandidateVerdict, ...] = ()


class Prediction(Record):
    """One reply of one model on one benchmark row; a line of `predictions.jsonl`."""

    id: str
    label: str
    """The reference answer, as in the reference implementation's prediction files."""
    predict: str
    """The model's reply, likewise."""
    finish: Finish
    tokens: int
    verdict: Verdict
    values: dict[str, float] = {}
    """Metric name to this row's value; and `unsandboxed`, 1, where its program ran without a sandbox."""
    group: str | None = None
    """A category within the benchmark, such as `writing`."""
    thought: str = ""
    """What a thinking model wrote in `<think>…</think>` before the reply."""


class ReplyNll(Record):
    """How unlikely one model finds one reply to learn; a line of `analyze/nll.jsonl`."""

    model: str
    example_id: str
    variant: Literal["original", "distilled"]
    """`distilled`: what the method `sdft` trains on; the original where no rewrite was taken."""
    text: str
    """A hash of prompt and reply: a changed text is measured anew."""
    tokens: int
    """Of the reply, with what ends it."""
    nll: float
    """Negative log-likelihood of all its tokens, in nats."""


class Shift(Record):
    """How like one tuned model's reply is to the seed's; a line of `analyze/shift.jsonl`. From 0 to 1, 1 is equal."""

    model: str
    benchmark: str
    id: str
    values: dict[str, float]
    """`similarity` (cosine of the embeddings; may be a little below 0), `bleu4`, `rouge_l`, and the reference's
    forms of these two, `bleu4_characters` and `rouge_l_tokens`, as far as measured."""


class Metric(Settings):
    """How a benchmark's per-row values become a score."""

    kind: Literal["rate", "mean"] = "rate"
    """`rate`: values 0 or 1, Wilson interval; `mean`: any values, bootstrap interval."""
    better: Literal["higher", "lower", "neither"] = "higher"
    percent: bool = True
    """Shown times 100."""


class Score(Record):
    """One metric of one model on one benchmark, with its 95 % interval."""

    model: str
    benchmark: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    kind: Literal["rate", "mean"]
    """`rate`: a share with a Wilson interval; `mean`: a mean with a bootstrap interval."""
    better: Literal["higher", "lower", "neither"] = "higher"


class Comparison(Record):
    """The paired difference of one model against another on one metric: value(model) - value(baseline)."""

    model: str
    baseline: str
    benchmark: str
    metric: str
    difference: float
    low: float
    high: float
    n: int
    p_value: float | None
    """McNemar's exact p for rates, None for means."""
