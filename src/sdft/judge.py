"""A judge model on an OpenAI-compatible server. It is asked only where a recipe names one, and no question twice.

What a question and its answer look like:

    … Which reply is better? End with one line: `Answer: A` or `Answer: B`.    →    Answer: B
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sdft.console import Console
from sdft.engines.base import Request, Sampling
from sdft.engines.openai import OpenAIEngine, ServerSettings, beyond_needed
from sdft.records import Message, Record
from sdft.rundir import JsonlWriter, digest, read_jsonl, seed_for

FILE = "judgements.jsonl"
COUNTED = "judge_requests.txt"
CHARS_PER_TOKEN = 4
"""Of English text, about; for estimates alone."""


class JudgeSettings(ServerSettings):
    """The model that judges, and the server that has it."""

    model: str
    """What the server calls it."""
    temperature: float = Field(default=0.0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of one judgement; a model that thinks before it answers needs many more."""

    def identity(self) -> list[object]:
        """What a judgement depends on beside its question."""
        return [self.model, self.temperature, self.max_new_tokens, self.extra_body]


@dataclass(frozen=True, slots=True)
class Question:
    """What the judge is asked."""

    text: str
    labels: tuple[str, ...]
    """The answers that it may give."""

    def key(self, judge: JudgeSettings) -> str:
        """The same for the same question to the same judge."""
        return digest([*judge.identity(), self.text])


class Judgement(Record):
    """One answer of the judge; a line of `judgements.jsonl`."""

    key: str
    """Of the judge and the whole question."""
    model: str
    label: str | None
    """None: the answer cannot be read."""
    text: str
    prompt_tokens: int
    tokens: int


def tokens_of(judge: JudgeSettings, questions: Sequence[Question]) -> tuple[int, int]:
    """Prompt tokens of asking, by the texts' length, and reply tokens at most."""
    prompt_tokens = sum(len(question.text) // CHARS_PER_TOKEN + 1 for question in questions)
    return prompt_tokens, len(questions) * judge.max_new_tokens


def estimate(judge: JudgeSettings, questions: Sequence[Question]) -> str:
    """Calls, tokens and, where prices are given, cost of asking, in words."""
    prompt_tokens, tokens = tokens_of(judge, questions)
    cost = judge.cost(prompt_tokens, tokens)
    price = "" if cost is None else f", cost at most about {cost:.2g}"
    return (
        f"judge {judge.model} at {judge.urls[0]}: {len(questions):,} calls, about {prompt_tokens:,} prompt tokens "
        f"and at most {tokens:,} reply tokens{price}"
    )


def read_label(text: str, labels: Iterable[str]) -> str | None:
    """The label behind the last `Answer:`, or the label that the whole reply or its last line consists of."""
    known = {label.lower(): label for label in labels}
    either = "|".join(map(re.escape, known))
    answers = re.findall(rf"answer\W{{0,5}}(?:is\W{{1,5}})?({either})\b", text, re.IGNORECASE)
    if answers:
        return known[answers[-1].lower()]
    lines = text.strip().splitlines()
    return known.get(lines[-1].strip(" *_`'\".()[]").lower()) if lines else None


def ask(
    judge: JudgeSettings, questions: Iterable[Question], folder: Path, console: Console, what: str
) -> tuple[dict[Question, Judgement], list[str]]:
    """The judgement of each question, and notes on those without one.

    What `folder` has is not asked again; what is asked is announced first, and appended there as it comes. Raises
    EngineError where the server cannot go on.
    """
    path = folder / FILE
    keys = {question.key(judge): question for question in questions}
    done = {found.key: found for found in (read_jsonl(path, Judgement) if path.exists() else ())}
    left = {key: question for key, question in keys.items() if key not in done}
    failed: Counter[str] = Counter()
    beyond: list[str] = []
    if left:
        console.say(f"{what}: {estimate(judge, list(left.values()))}")
        sampling = Sampling(temperature=judge.temperature, max_new_tokens=judge.max_new_tokens)
        requests = (
            Request(key, "", seed_for(key), messages=(Message(role="user", content=question.text),))
            for key, question in left.items()
        )
        with (
            closing(OpenAIEngine(judge, judge.model, "chat")) as engine,
            engine.counting(folder / COUNTED),
            JsonlWriter(path) as writer,
            console.task(f"{what}, judged", total=len(keys), done=len(keys) - len(left)) as task,
        ):
            for completion in engine.generate(requests, sampling):
                if completion.finish == "error":
                    failed[completion.error or ""] += 1
                    continue
                judgement = Judgement(
                    key=completion.id,
                    model=judge.model,
                    label=read_label(completion.text, left[completion.id].labels),
                    text=completion.text,
                    prompt_tokens=completion.prompt_tokens,
                    tokens=completion.tokens,
                )
                writer.write(judgement)
                done[judgement.key] = judgement
                task.advance(extra=completion.tokens)
            beyond = engine.notes()
    found = {question: done[key] for key, question in keys.items() if key in done}
    beyond += beyond_needed(folder / COUNTED, len(done) + failed.total())
    return found, _notes(judge, found, failed) + [f"judge {judge.model}: {note}" for note in beyond]


def _notes(judge: JudgeSettings, found: Mapping[Question, Judgement], failed: Counter[str]) -> list[str]:
    notes = []
    if judge.priced:
        used = sum(j.prompt_tokens for j in found.values()), sum(j.tokens for j in found.values())
        notes.append(f"judge {judge.model}: {len(found):,} calls, {judge.bill(*used)}")
    if failed:
        why, _ = failed.most_common(1)[0]
        notes.append(f"{failed.total()} judgements failed, most with: {why}")
    unread = [judgement.text for judgement in found.values() if judgement.label is None]
    if unread:
        notes.append(f"{len(unread)} answers of the judge cannot be read, such as {unread[0][:80]!r}")
    return notes
