"""The checks of form, what all checks have in common, and how they are put together."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import sdft.checks
from helpers_checks import example, jsonl
from sdft.checks import PASS, Answer, AnyCheck, Check, Copies, Degenerate, Leak, Length, Number, first_failure
from sdft.checks.answer import words_of

MEMBERS: tuple[type[Check], ...] = get_args(get_args(AnyCheck)[0])
ALL = [member() for member in MEMBERS]


def test_every_check_module_is_in_the_union() -> None:
    defined = set()
    for module in pkgutil.iter_modules(sdft.checks.__path__):
        loaded = importlib.import_module(f"sdft.checks.{module.name}")
        found = {
            item
            for _, item in inspect.getmembers(loaded, inspect.isclass)
            if issubclass(item, Check) and item is not Check and item.__module__ == loaded.__name__
        }
        assert found or module.name == "base", f"{module.name} defines no check"
        defined |= found
    assert defined == set(MEMBERS)
    assert {member.__name__ for member in MEMBERS} <= set(sdft.checks.__all__)


def test_every_check_can_be_named_alone_and_says_what_it_does() -> None:
    for check in ALL:
        assert (type(check).__doc__ or "").splitlines()[0].endswith((".", ":")), check.name
    assert len({check.name for check in ALL}) == len(MEMBERS)


@given(st.text(), st.text())
@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_no_text_makes_a_check_raise(check: Check, reference: str, text: str) -> None:
    verdict = check(example(reference), text)
    assert verdict.reason and (verdict.reason == "ok") <= verdict.ok
    assert check(example(reference), text) == verdict


@given(st.text(alphabet="f(a=1)'\"\\,[]{}: \n#x.0-9`", max_size=60))
@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_no_text_that_looks_like_a_call_makes_a_check_raise(check: Check, text: str) -> None:
    check(example("f(a=1)"), text)
    check(example(text), text)


def test_lone_surrogates_and_null_bytes_are_text() -> None:
    for check in ALL:
        check(example("f(a=1)"), "f(a='\ud800\x00')")


def test_degenerate_finds_loops() -> None:
    check = Degenerate()
    assert check(example(""), " \n").reason == "empty"
    assert check(example(""), "I am a model. " * 4).detail == "i am a model"
    assert check(example(""), "Well then: " + "so " * 12).reason == "loop"
    assert check(example(""), "!" * 200).reason == "loop"
    assert check(example(""), "First. " + "one two three four five six seven eight " * 4 + "End").reason == "loop"


@pytest.mark.parametrize(
    "text",
    [
        "no, no, no, no, no",
        "one two three four five six seven eight " * 3,
        "| a | b |\n| --- | --- |\n" + "| - " * 20,
        "=" * 80,
        "I am a model. You are a model. He is a model. She is a model. It is a model. We are all models.",
        "57",
    ],
)
def test_degenerate_lets_repetition_stand_that_is_no_loop(text: str) -> None:
    assert Degenerate()(example(""), text) == PASS


@given(
    st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=6, unique=True),
    st.integers(2, 6),
    st.lists(st.sampled_from("uvwxyz"), max_size=5, unique=True),
)
def test_degenerate_counts_repeats_exactly(phrase: list[str], times: int, around: list[str]) -> None:
    text = " ".join([*around, *phrase * times, *around])
    expected = times >= 4 and len(phrase) * times >= 12
    assert (Degenerate()(example(""), text).reason == "loop") == expected
    assert Degenerate(repeats=times, min_loop_words=2)(example(""), text).reason == "loop"
    assert Degenerate(repeats=times + 1, min_loop_words=2)(example(""), text).ok


def test_degenerate_lets_real_replies_stand() -> None:
    prompts = [row["predict"] for row in jsonl("golden/verdicts.jsonl") if row["check"] == "leak"]
    assert prompts and all(Degenerate()(example(""), text).ok for text in prompts)


def test_copies_pass_but_are_counted() -> None:
    verdict = Copies()(example("57\n"), " 57")
    assert (verdict.ok, verdict.reason) == (True, "identical")
    assert Copies()(example("57"), "57.") == PASS


def test_length_is_a_ratio_of_words() -> None:
    reference = example("one two three four five six seven eight nine ten")
    check = Length(min_ratio=0.5, max_ratio=2)
    assert check(reference, "a b c d").reason == "too_short"
    assert check(reference, "a b c d e") == PASS
    assert check(reference, "a " * 20) == PASS
    assert check(reference, "a " * 21).reason == "too_long"
    assert check(reference, "a " * 21).detail == "21 words for 10"
    assert Length(min_ratio=None, max_ratio=None)(reference, "") == PASS
    assert Length()(example(""), "a b c") == PASS
    with pytest.raises(ValidationError, match="nothing could pass"):
        Length(min_ratio=2, max_ratio=1)


def test_first_failure_gives_the_reason() -> None:
    checks: list[Check] = [Leak(), Copies(), Number()]
    assert first_failure(checks, example("57"), "your response: 58").reason == "leak"
    assert first_failure(checks, example("57"), "It is 58").reason == "number_differs"
    assert first_failure(checks, example("57"), "It is 57") == PASS
    assert first_failure(checks, example("57"), "57").reason == "identical"
    assert first_failure(checks, example("none"), "none").reason == "no_number"  # a refusal outweighs `identical`
    assert first_failure([], example("57"), "") == PASS


def test_checks_take_linear_time() -> None:
    for check in ALL:
        for text in ("a(" * 50_000, "1," * 50_000, "a.b" * 30_000, "word " * 20_000 + "x", "' " * 50_000):
            start = time.process_time()
            check(example("f(a=1)"), text)
            assert time.process_time() - start < 5, (check.name, text[:10])


@pytest.mark.parametrize(
    ("reference", "text", "settings", "reason"),
    [
        ("Paris", "It is in Paris, France.", {}, "ok"),
        ("The Beatles", "beatles!", {}, "ok"),
        ("The Beatles", "beatles!", {"match": "exact"}, "ok"),
        ("Paris", "It is in Paris.", {"match": "exact"}, "no_answer"),
        ("art", "A party.", {}, "no_answer"),
        ("-3", "It is 3.", {}, "no_answer"),
        ("3", "It is -3.", {}, "no_answer"),
        ("3.5", "About 3.5 metres.", {}, "ok"),
        ("3", "About 3.5 metres.", {}, "no_answer"),
        ("ｐａｒｉｓ", "paris", {}, "ok"),
        ("巴黎", "答案是巴黎。", {}, "ok"),
        ("Straße", "STRASSE", {}, "ok"),
        ("positive", "It is positive, not negative.", {"labels": ("positive", "negative")}, "several_answers"),
        ("positive", "It is positive.", {"labels": ("positive", "negative")}, "ok"),
        ("very good", "It is very good.", {"labels": ("good", "very good")}, "ok"),
        ("!", "!", {}, "no_answer"),
        ("A", "Answer: (A).", {}, "ok"),
        ("A", "It is a B.", {}, "no_answer"),
        ("(B)", "It is a B.", {"labels": ("A", "B", "C")}, "ok"),
        ("the", "The", {}, "no_answer"),
    ],
)
def test_answers_are_found_word_for_word(reference: str, text: str, settings: dict[str, Any], reason: str) -> None:
    assert Answer(**settings)(example(reference), text).reason == reason


@given(st.text(min_size=1), st.text(), st.text())
def test_an_answer_with_anything_around_it_is_found(reference: str, before: str, after: str) -> None:
    verdict = Answer()(example(reference), f"{before} . {reference} . {after}")
    one = len(reference.strip(" .()")) == 1
    assert verdict.ok == bool(words_of(reference, cased=one))
