"""Select: which rewrites replace the original, each with its reason. Generates nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from sdft.candidates import RewriteIndex, judge
from sdft.cautions import few_rewrites
from sdft.checks import Check
from sdft.console import Console
from sdft.data import as_messages, as_row
from sdft.recipe import Recipe
from sdft.records import CandidateVerdict, Choice, Example, Rewrite, Verdict
from sdft.rundir import Jsonl, RunDir, atomic_write, count_lines, read_jsonl, write_json

NO_REWRITE = Verdict(ok=False, reason="no_rewrite")
BIN_EDGES = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    20,
    25,
    30,
    40,
    50,
    60,
    80,
    100,
    120,
    150,
    200,
    250,
    300,
    400,
    500,
    600,
)
"""Words at which bins of the length histogram begin; the last bin has no end."""


def select(
    examples: Iterable[Example],
    rewrites: Iterable[Rewrite],
    checks: Sequence[Check] = (),
    keep_truncated: bool = False,
) -> Iterator[Choice]:
    """Yield, for each example in order, what it trains on.

    The first candidate that passes every check replaces the original; where none does, the original stays.
    Rewrites are joined by example id, in any order, through a temporary file: memory does not grow with them.
    """
    with RewriteIndex(rewrites) as index:
        for example in examples:
            yield choose(example, index.of(example.id), checks, keep_truncated)


def choose(example: Example, rewrites: Iterable[Rewrite], checks: Sequence[Check], keep_truncated: bool) -> Choice:
    """The choice for one example among its candidates. Those after the first that passes are not judged."""
    judged: list[CandidateVerdict] = []
    for rewrite in rewrites:
        verdict = judge(example, rewrite, checks, keep_truncated)
        judged.append(CandidateVerdict(candidate=rewrite.candidate, text=rewrite.text, verdict=verdict))
        if verdict.ok:
            break
    last = judged[-1] if judged else None
    accepted = last is not None and last.verdict.ok
    return Choice(
        example_id=example.id,
        response=last.text.strip() if last and accepted else example.reference,
        source="rewrite" if accepted else "original",
        verdict=last.verdict if last else NO_REWRITE,
        candidate=last.candidate if last and accepted else None,
        original=example.reference,
        candidates=tuple(judged),
    )


class Summary:
    """Counts over choices as they go by. Lengths are in words, parted by white space."""

    def __init__(self) -> None:
        self.examples = self.rewritten = self.identical = 0
        self.reasons: Counter[str] = Counter()
        self.candidate_reasons: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.accepted_at: Counter[int] = Counter()
        self.words: dict[str, Counter[int]] = {"original": Counter(), "chosen": Counter()}

    def add(self, choice: Choice) -> None:
        """Count one choice."""
        self.examples += 1
        self.reasons[choice.verdict.reason] += 1
        self.refused.update([choice.verdict.reason] if choice.source == "original" else [])
        self.candidate_reasons.update(candidate.verdict.reason for candidate in choice.candidates)
        if choice.candidate is not None:
            self.rewritten += 1
            self.identical += choice.response == choice.original.strip()
            self.accepted_at[choice.candidate] += 1
        self.words["original"][len(choice.original.split())] += 1
        self.words["chosen"][len(choice.response.split())] += 1

    def as_json(self) -> dict[str, Any]:
        """What `select/summary.json` holds."""
        longest = max((max(words, default=0) for words in self.words.values()), default=0)
        edges = [edge for edge in BIN_EDGES if edge <= longest] or [0]
        return {
            "examples": self.examples,
            "rewritten": self.rewritten,
            "kept": self.examples - self.rewritten,
            "identical": self.identical,
            "share_rewritten": self.rewritten / self.examples if self.examples else 0.0,
            "reasons": dict(self.reasons.most_common()),
            "candidate_reasons": dict(self.candidate_reasons.most_common()),
            "accepted_at": [self.accepted_at[i] for i in range(max(self.accepted_at, default=-1) + 1)],
            "length": {
                **{name: _centre(words) for name, words in self.words.items()},
                "histogram": {"edges": edges, **{name: _bins(words, edges) for name, words in self.words.items()}},
            },
        }


def run_select(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """Write `select/`: choices, summary, and the distilled set in two forms. Returns notes for the manifest."""
    folder, data = run / "select", run / "data/train.jsonl"
    summary = Summary()
    with ExitStack() as stack:
        rewrites = read_jsonl(run / "distill/rewrites.jsonl", Rewrite)
        index = stack.enter_context(RewriteIndex(rewrites))
        choices = stack.enter_context(atomic_write(folder / "choices.jsonl"))
        messages = stack.enter_context(atomic_write(folder / "distilled.messages.jsonl"))
        rows = stack.enter_context(atomic_write(folder / "distilled.jsonl"))
        task = stack.enter_context(console.task("select", total=count_lines(data)))
        for example in Jsonl(data, Example):
            found = index.of(example.id)
            choice = choose(example, found, recipe.select.checks, recipe.select.keep_truncated)
            choices.write(choice.model_dump_json() + "\n")
            messages.write(_json_line(as_messages(example, choice.response)))
            rows.write(_json_line(as_row(example, choice.response)))
            summary.add(choice)
            task.advance()
    counted = summary.as_json()
    write_json(folder / "summary.json", counted)
    console.say(f"select: {summary.rewritten} of {summary.examples} rewritten ({counted['share_rewritten']:.0%})")
    caution = few_rewrites(summary.examples, summary.rewritten, summary.refused)
    if caution:
        console.warn(caution)
    return [caution] if caution else []


def _json_line(value: Any) -> str:
    return to_json(value).decode() + "\n"


def _centre(words: Counter[int]) -> dict[str, float]:
    """Mean and (lower) median of counted word numbers."""
    total = sum(words.values())
    if not total:
        return {"mean_words": 0.0, "median_words": 0.0}
    lengths = sorted(words)
    reached = accumulate(words[length] for length in lengths)
    median = next(length for length, count in zip(lengths, reached, strict=True) if 2 * count >= total)
    return {"mean_words": sum(n * count for n, count in words.items()) / total, "median_words": float(median)}


def _bins(words: Counter[int], edges: Sequence[int]) -> list[int]:
    counts = [0] * len(edges)
    for length, count in words.items():
        counts[max(i for i, edge in enumerate(edges) if edge <= length)] += count
    return counts
