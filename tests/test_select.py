"""Selecting: what replaces the original, and why."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdft
from helpers_pipeline import example, rewrite, scripted_recipe
from sdft.checks import Copies, Leak, Number
from sdft.records import Choice, Example
from sdft.rundir import read_json, read_jsonl
from sdft.stages.select import Summary, select

CHECKS = (Leak(), Number())
EXAMPLES = [example(number) for number in range(4)]


def reasons(*rewrites: Any, checks: Any = CHECKS, keep_truncated: bool = False) -> dict[str, str]:
    return {c.example_id: c.verdict.reason for c in select(EXAMPLES, rewrites, checks, keep_truncated)}


def test_a_rewrite_that_passes_replaces_the_original_stripped() -> None:
    choice = next(select(EXAMPLES, [rewrite(0, "\n It is 4. ")], CHECKS))
    assert (choice.response, choice.source, choice.candidate, choice.verdict.ok) == ("It is 4.", "rewrite", 0, True)


def test_every_reason() -> None:
    found = reasons(
        rewrite(0, "It is 5."),
        rewrite(1, "As the reference answer says, 5."),
        rewrite(2, "It is 6 and", finish="length"),
    )
    assert found == {"e0": "number_differs", "e1": "leak", "e2": "truncated", "e3": "no_rewrite"}
    found = reasons(
        rewrite(0, "", finish="error", error="out of memory"),
        rewrite(1, "", finish="error", error="prompt_too_long"),
        rewrite(2, " \n"),
        rewrite(3, "It is 7"),
    )
    assert found == {"e0": "generation_error", "e1": "prompt_too_long", "e2": "empty", "e3": "ok"}
    assert reasons(rewrite(2, "It is 6", finish="length"), keep_truncated=True)["e2"] == "ok"


def test_where_nothing_passes_the_original_stays_to_the_letter() -> None:
    padded = EXAMPLES[0].model_copy(update={"reference": " 4\n"})
    [choice] = select([padded], [rewrite(0, "It is 5.")], CHECKS)
    assert (choice.response, choice.source, choice.candidate) == (" 4\n", "original", None)


def test_both_texts_are_stripped_before_they_are_compared() -> None:
    padded = EXAMPLES[0].model_copy(update={"reference": " 4\n"})
    [choice] = select([padded], [rewrite(0, "4 ")], (Copies(),))
    assert choice.verdict.ok
    assert choice.verdict.reason == "identical"


def test_the_first_candidate_that_passes_is_taken_and_all_before_it_are_told() -> None:
    given = [rewrite(0, "It is 4, too.", 2), rewrite(0, "It is 9.", 0), rewrite(0, "It is 4.", 1)]
    choice = next(select(EXAMPLES, given, CHECKS))
    assert (choice.candidate, choice.response) == (1, "It is 4.")
    assert [(c.candidate, c.verdict.reason) for c in choice.candidates] == [(0, "number_differs"), (1, "ok")]


@given(seed=st.integers())
def test_the_join_is_by_id_whatever_the_order(seed: int) -> None:
    rewrites = [rewrite(number, f"It is {number + 4}.", c) for number in range(4) for c in range(3)]
    random.Random(seed).shuffle(rewrites)
    choices = list(select(EXAMPLES, rewrites, CHECKS))
    assert [choice.example_id for choice in choices] == [item.id for item in EXAMPLES]
    assert [choice.response for choice in choices] == [f"It is {number + 4}." for number in range(4)]
    assert {choice.candidate for choice in choices} == {0}


def test_rewrites_of_other_examples_are_passed_over() -> None:
    assert reasons(rewrite(99, "It is 103."))["e0"] == "no_rewrite"


@given(texts=st.lists(st.text(alphabet="ab 4\n", max_size=30), min_size=1, max_size=20))
def test_a_summary_adds_up(texts: list[str]) -> None:
    examples = [example(number) for number in range(len(texts))]
    summary = Summary()
    choices = list(select(examples, [rewrite(i, text) for i, text in enumerate(texts)], CHECKS))
    for choice in choices:
        summary.add(choice)
    counted = summary.as_json()
    assert counted["examples"] == len(texts) == counted["rewritten"] + counted["kept"]
    assert sum(counted["reasons"].values()) == len(texts)
    assert sum(counted["accepted_at"]) == counted["rewritten"]
    histogram = counted["length"]["histogram"]
    words = sorted(len(choice.response.split()) for choice in choices)
    assert counted["length"]["chosen"]["mean_words"] == pytest.approx(sum(words) / len(words))
    assert counted["length"]["chosen"]["median_words"] == words[(len(words) - 1) // 2]
    edges = [*histogram["edges"], float("inf")]
    assert histogram["chosen"] == [sum(low <= count < high for count in words) for low, high in pairwise(edges)]


def test_a_run_writes_every_row_with_its_verdict_and_the_set_as_plain_datasets(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, rows=6)
    tree["distill"]["engine"]["replies"] = {"2 plus 4": "Two and four make 6.", "3 plus 4": "It is 7."}
    folder = sdft.run(tree, only="distill").path
    sdft.run(tree, only="select")
    choices = list(read_jsonl(folder / "select/choices.jsonl", Choice))
    examples = list(read_jsonl(folder / "data/train.jsonl", Example))
    assert [choice.example_id for choice in choices] == [item.id for item in examples]
    assert [choice.source for choice in choices] == ["original"] * 2 + ["rewrite"] * 2 + ["original"] * 2
    rows = [json.loads(line) for line in (folder / "select/distilled.jsonl").read_text().splitlines()]
    assert rows[2] == {"instruction": "2 plus 4 is", "output": "Two and four make 6.", "source": "made"}
    turns = [json.loads(line) for line in (folder / "select/distilled.messages.jsonl").read_text().splitlines()]
    assert turns[4]["messages"] == [
        {"role": "user", "content": "4 plus 4 is"},
        {"role": "assistant", "content": "8"},
    ]
    summary = read_json(folder / "select/summary.json")
    assert (summary["rewritten"], summary["kept"], summary["accepted_at"]) == (2, 4, [2])


def test_other_checks_need_no_new_replies(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    folder = sdft.run(tree).path
    before = (folder / "distill/rewrites.jsonl").read_bytes()
    assert read_json(folder / "select/summary.json")["rewritten"] == 0
    result = sdft.run(tree, ["select.checks=[leak]"], only="select")
    assert result.done == ("select",)
    assert read_json(folder / "select/summary.json")["rewritten"] == 12
    assert (folder / "distill/rewrites.jsonl").read_bytes() == before
