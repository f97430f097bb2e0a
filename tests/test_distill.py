"""Distilling: candidates, resuming, faults."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_data import chatml_tokenizer
from helpers_pipeline import example, rewrite, scripted, verbatim_prompter
from sdft.checks import Leak, Number
from sdft.engines import Request, Sampling
from sdft.errors import EngineError, PromptError
from sdft.prompts import Prompt, PromptConfig, Renderer
from sdft.records import Completion, Example, Message, Rewrite
from sdft.rendering import Prompter
from sdft.rundir import JsonlWriter, read_jsonl, write_jsonl
from sdft.stages.distill import distill

EXAMPLES = [example(number) for number in range(8)]
SAMPLING = Sampling(temperature=1.0)
CHECKS = (Leak(), Number())


class Shuffled:
    """Wraps an engine: asks it for everything, gives the replies in another order, counts the requests."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked: Counter[tuple[str, int]] = Counter()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        asked = list(requests)
        self.asked.update((request.id, request.seed) for request in asked)
        replies = list(self.inner.generate(asked, sampling))
        yield from sorted(replies, key=lambda completion: completion.text[::-1])


def run(engine: Any, done: Iterable[Rewrite] = (), candidates: int = 3) -> list[Rewrite]:
    return list(
        distill(
            EXAMPLES, engine, verbatim_prompter(), SAMPLING, candidates=candidates, checks=CHECKS, seed=7, done=done
        )
    )


def test_each_example_gets_one_rewrite_joined_by_id() -> None:
    rewrites = run(Shuffled(scripted(default="seed {seed}")), candidates=1)
    assert sorted(found.example_id for found in rewrites) == sorted(item.id for item in EXAMPLES)
    assert len({found.text for found in rewrites}) == len(EXAMPLES)
    assert {found.candidate for found in rewrites} == {0}


def test_a_prompt_shows_instruction_and_reference() -> None:
    right = scripted(replies={"3 plus 4 is A: 7": "found it"}, default="not it")
    assert [found.example_id for found in run(right, candidates=1) if found.text == "found it"] == ["e3"]


def test_later_candidates_are_only_asked_for_where_the_earlier_failed() -> None:
    right = {f"Q: {number} plus": f"The answer is {number + 4}." for number in (1, 4)}
    rewrites = run(scripted(replies=right, default="The answer is {seed}."))
    counts = Counter(found.example_id for found in rewrites)
    assert counts == {item.id: 1 if item.id in ("e1", "e4") else 3 for item in EXAMPLES}
    texts = [found.text for found in rewrites if found.example_id == "e0"]
    assert len(set(texts)) == 3, "each candidate has a seed of its own"


def test_truncated_and_failed_replies_count_as_failed() -> None:
    right = {f"Q: {number} plus": f"The answer is {number + 4}." for number in range(8)}
    rewrites = run(scripted(replies=right, truncate_every=4, fail_every=3), candidates=2)
    first = {found.example_id: found.finish for found in rewrites if found.candidate == 0}
    again = {found.example_id for found in rewrites if found.candidate == 1}
    assert Counter(first.values()) == {"stop": 4, "error": 2, "length": 2}
    assert again == {name for name, finish in first.items() if finish != "stop"}


def test_an_engine_that_dies_keeps_what_came_before() -> None:
    kept: list[Rewrite] = []
    with pytest.raises(EngineError, match="died after 3"):
        for found in distill(EXAMPLES, scripted(die_after=3), verbatim_prompter(), SAMPLING, seed=7):
            kept.append(found)
    rest = list(distill(EXAMPLES, scripted(), verbatim_prompter(), SAMPLING, seed=7, done=kept))
    undisturbed = list(distill(EXAMPLES, scripted(), verbatim_prompter(), SAMPLING, seed=7))
    assert len(kept) == 3
    assert sorted(map(repr, [*kept, *rest])) == sorted(map(repr, undisturbed))


MIXED = {f"Q: {number} plus": f"The answer is {number + 4}." for number in (0, 2, 5)}


@given(cut=st.integers(min_value=0))
def test_any_prefix_of_the_rewrites_is_gone_on_from_to_the_same_set(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rewrites.jsonl"
        undisturbed = Shuffled(scripted(replies=MIXED, default="The answer is {seed}."))
        write_jsonl(path, run(undisturbed))
        whole = path.read_bytes()
        path.write_bytes(whole[: cut % (len(whole) + 1)])
        resumed = Shuffled(undisturbed.inner)
        with JsonlWriter(path) as writer:
            before = list(read_jsonl(path, Rewrite))
            for found in run(resumed, done=before):
                writer.write(found)
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
        assert sum(resumed.asked.values()) == len(whole.splitlines()) - len(before), "nothing is generated twice"


def test_a_reply_in_hand_is_not_asked_for_again_where_checks_have_changed() -> None:
    done = [rewrite(item, f"The answer is {item + 4}.") for item in range(8)]
    engine = Shuffled(scripted())
    assert run(engine, done=done) == []
    more = list(
        distill(
            EXAMPLES, engine, verbatim_prompter(), SAMPLING, candidates=2, checks=(Number(), Number()), done=done[:6]
        )
    )
    assert {found.example_id for found in more if found.candidate == 0} == {"e6", "e7"}


class Cramped(Prompter):
    """A model into whose context some prompts do not fit."""

    def distill(self, example: Example, sampling: Sampling) -> Prompt | None:
        return None if example.id in ("e0", "e7") else super().distill(example, sampling)


def test_a_prompt_that_does_not_fit_is_a_row_with_its_reason_and_is_not_tried_again() -> None:
    prompter = Cramped(verbatim_prompter().renderer, None)
    rewrites = list(distill(EXAMPLES, scripted(), prompter, SAMPLING, candidates=2, checks=CHECKS))
    long = [found for found in rewrites if found.error == "prompt_too_long"]
    assert sorted((found.example_id, found.candidate, found.finish) for found in long) == [
        ("e0", 0, "error"),
        ("e7", 0, "error"),
    ]
    assert list(distill(EXAMPLES[:1], scripted(), prompter, SAMPLING, candidates=2, done=long)) == []


def test_examples_may_be_a_generator() -> None:
    rewrites = list(
        distill((item for item in EXAMPLES), scripted(), verbatim_prompter(), SAMPLING, candidates=2, checks=CHECKS)
    )
    assert len(rewrites) == 16


def test_prompts_are_held_to_the_models_context() -> None:
    tokenizer = chatml_tokenizer()
    long = example(1).model_copy(update={"messages": (Message(role="user", content="word " * 60 + "1 plus 4 is"),)})
    sampling = Sampling(max_new_tokens=20)

    def prompt(on_long: str, item: Example = long, context: int = 120) -> Prompt | None:
        config = PromptConfig.model_validate({"on_long": on_long})
        return Prompter(Renderer(config, tokenizer), context).distill(item, sampling)

    fits = prompt("error", context=1000)
    assert fits is not None
    assert prompt("skip") is None
    with pytest.raises(PromptError, match=r"example e1: its prompt has .* the limit is 100"):
        prompt("error")
    cut = prompt("truncate_left")
    assert cut is not None
    assert len(tokenizer(cut.text)["input_ids"]) <= 100 < len(tokenizer(fits.text)["input_ids"])
    assert "1 plus 4 is" in cut.text
