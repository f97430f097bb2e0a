"""The checks of the reference implementation, against its own verdicts and its listed quirks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_checks import data_file, example, jsonl
from sdft.checks import Call, Check, Code, Leak, Number, RefusalKeywords
from sdft.checks.call import positional_score
from sdft.checks.number import last_integer
from sdft.checks.refusal_keywords import PHRASES

CHECKS: dict[str, Check] = {check.name: check for check in (Leak(), Number(), Call(), Code(), RefusalKeywords())}


def test_golden_verdicts() -> None:
    cases = jsonl("golden/verdicts.jsonl")
    assert {case["check"] for case in cases} == set(CHECKS)
    wrong = [
        (case, verdict)
        for case in cases
        if "error" not in case
        and (verdict := CHECKS[case["check"]](example(case["label"]), case["predict"])).ok != case["expected"]
    ]
    assert not wrong


def test_golden_positional_scores() -> None:
    cases = [case for case in jsonl("golden/verdicts.jsonl") if "score_with_positional" in case]
    assert {case["score_with_positional"] for case in cases} == {0, 0.5, 1}
    wrong = [
        case for case in cases if positional_score(case["label"], case["predict"]) != case["score_with_positional"]
    ]
    assert not wrong


def test_gold_replies_pass_their_own_check() -> None:
    for name in ("gsm8k/gsm8k_train", "gsm8k/gsm8k_test"):
        answers = [row["answer"] for row in _json(name)]
        failing = [text for text in answers if not Number()(example(text), text).ok]
        assert answers and not failing
    for name in ("openfunction/openfunction_train", "openfunction/openfunction_test"):
        calls = [row["output"] for row in _json(name)]
        assert calls and not [text for text in calls if not Call()(example(text), text).ok]
        assert not [text for text in calls if positional_score(text, text) != 1]


def _json(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(data_file(f"{name}.json").read_text(encoding="utf-8"))
    return rows


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", 18),
        ("1,200 dollars", 1200),
        ("-35,200", -35200),
        ("1,35", 135),  # any comma groups
        ("1 54", 154),
        ("11.00", 11),
        ("2.5", None),  # a fraction is no whole number, and an earlier number does not stand in
        ("7, then 2.5", None),
        ("The answer is 17 (see step 2)", 2),
        ("3\n4", None),  # the pattern takes both lines as one number, which it is not
        ("3\t4", None),
        ("-0", 0),
        ("none", None),
        ("", None),
        ("9" * 5000, None),  # beyond what int() reads
        ("1." + "0" * 5000, None),
    ],
)
def test_last_integer(text: str, number: int | None) -> None:
    assert last_integer(text) == number


@given(st.integers(), st.text(st.characters(exclude_categories=["Nd", "Pd"], exclude_characters=",.-"), max_size=30))
def test_last_integer_is_found_after_any_words(number: int, words: str) -> None:
    assert last_integer(f"{words} {number}") == number
    assert last_integer(f"{words} {number:,} apples") == number
    assert last_integer(f"3 {words}; {number}.000") == number


def test_number_reasons() -> None:
    number = Number()
    assert number(example("57"), "75").reason == "number_differs"
    assert number(example("57"), "75").detail == "75 for 57"
    for reference, reply in (("57", "none"), ("none", "57"), ("none", "none")):
        verdict = number(example(reference), reply)
        assert (verdict.ok, verdict.reason) == (False, "no_number")


def test_leak_in_any_case_and_opening_in_one() -> None:
    leak = Leak()
    assert not leak(example("x"), "Based on the REFERENCE Answer, 4.").ok
    assert not leak(example("x"), "  \nYour turn: go").ok
    assert leak(example("x"), "your turn comes").ok
    assert leak(example("x"), "It is your turn").ok
    assert leak(example("x"), "Now it's Your Turn").detail == "now it's your turn"


def test_call_folds_spaces_and_quotes_and_nothing_else() -> None:
    call = Call()
    reference = example("f.g(a='x', b=[1, 2])")
    assert call(reference, 'Sure:\n f.g(a="x",b=[1,\n 2]).').ok
    assert not call(reference, "f.g(b=[1, 2], a='x')").ok
    assert not call(reference, "ff.g(a='x', b=[1, 2])").ok  # the name begins at a word's boundary
    assert call(reference, "h.f.g(a='x', b=[1, 2])").ok  # and a dot is one
    assert call(example("f(a=1) and more"), "f(a=1)").ok
    assert call(example("not a call"), "not a call").reason == "reference_not_a_call"
    assert positional_score("not a call", "not a call") == 0


def test_positional_score_looks_at_values_by_place() -> None:
    assert positional_score("f(a=1, b='x')", "g(1, 'x')") == 0.5  # even of another function
    assert positional_score("f(a=1, b='x')", "f('x', 1)") == 0
    assert positional_score("f(a=1, b='x')", "f(1)") == 0
    assert positional_score("f(1)", "f(a=1)") == 0  # a label without names has nothing to compare


def test_code_wants_fence_and_opening() -> None:
    code = Code()
    assert code(example("x"), "\n Here is it:\n```python\n1\n```").ok
    assert code(example("x"), "Here is it").reason == "no_code"
    assert code(example("x"), "Sure!\n```python\n1\n```").reason == "wrong_opening"


def test_refusal_phrases_are_case_sensitive() -> None:
    refusal = RefusalKeywords()
    assert len(set(PHRASES)) == 29
    assert all(refusal(example(""), f"Well. {phrase} x").ok for phrase in PHRASES)
    assert refusal(example(""), "As an example, do this").detail == "As an"
    assert refusal(example(""), "SORRY, no").reason == "no_refusal"
