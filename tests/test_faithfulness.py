"""Faithful to the reference on every row at hand: prompts, checks, the shipped distilled sets, and what the docs say.

The rules of the reference are written out here once more, in plain string operations that share nothing with `sdft`.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helpers_checks import data_file, example, jsonl
from sdft.checks import Call, Check, Code, Leak, Number
from sdft.data import load_examples
from sdft.prompts import PromptConfig, Renderer
from sdft.records import Rewrite
from sdft.stages.select import choose

DOCS = Path(__file__).parents[1] / "docs/faithfulness.md"
Turns = list[tuple[str, str]]
"""What the user said with what was replied; the last reply is the reference."""

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITH_REFERENCE = "Below are an instruction that describes a task along with a reference answer."
MATH = "You are an expert in math. Below is a math question. Write a response that appropriately answers the question."
MATH_INFER = (
    f"{MATH} Your final answer should be an integer at the end of your response, formatted as: "
    "The answer is {answer}."
)
MATH_DISTILL = (
    "You are an expert in math. Below are a math question and its reference answer. Refer to the reference answer and "
    "write a response that appropriately answers the question."
)
BEGUN = "Great! Let's think step by step. "


def alpaca(system: str, turns: Turns, shown: bool = False, suffix: str = "") -> str:
    parts = []
    for asked, reply in turns:
        reference = f"### Reference Answer:\n{reply.strip()}\n\n" if shown else ""
        parts.append(f"### Instruction:\n{asked.strip()}{suffix}\n\n{reference}### Response:\n")
    text = f"<s>{system}\n\n"
    for part, (_, reply) in zip(parts[:-1], turns[:-1], strict=True):
        text += part + reply + "</s>\n\n<s>"
    return text + parts[-1]


def llama2(system: str, turns: Turns, shown: bool = False) -> str:
    [(asked, reply)] = turns
    user = asked.strip() + ("\n\n" + reply.strip() if shown else "")
    return f"<s><<SYS>>\n{system}\n<</SYS>>\n\n[INST] {user} [/INST]" + (f" {BEGUN}" if shown else "")


def llama3(system: str, turns: Turns, shown: bool = False) -> str:
    [(asked, reply)] = turns
    user = asked + ("\n\n" + reply if shown else "")
    said = (("system", system), ("user", user))
    text = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{words}<|eot_id|>" for role, words in said)
    return f"<s>{text}<|start_header_id|>assistant<|end_header_id|>\n\n" + (BEGUN if shown else "")


@functools.cache
def adversarial_suffix() -> str:
    """As it stands in the reference's own rendering."""
    case = next(case for case in jsonl("golden/prompts.jsonl") if case["template"] == "alpaca_gcg")
    goal = list(csv.DictReader(data_file("harmful_behaviors.csv").open(encoding="utf-8")))[case["row"]]["goal"]
    return str(case["prompt"]).split(goal.strip())[1].split("\n\n### Response")[0]


def rendered(template: str, turns: Turns) -> str:
    """The reference's prompt by the facts alone."""
    texts = {
        "alpaca": lambda: alpaca(ALPACA, turns),
        "alpaca_gcg": lambda: alpaca(ALPACA, turns, suffix=adversarial_suffix()),
        "alpaca_distill_refer": lambda: alpaca(
            f"{WITH_REFERENCE} Refer to the reference answer and write your own response.", turns, shown=True
        ),
        "alpaca_distill_using": lambda: alpaca(
            f"{WITH_REFERENCE} Using the reference answer as a guide, write your own response.", turns, shown=True
        ),
    }
    for prefix, family in (("", llama2), ("llama3_", llama3)):
        texts[f"{prefix}gsm8k"] = lambda family=family: family(MATH, turns)
        texts[f"{prefix}gsm8k_infer"] = lambda family=family: family(MATH_INFER, turns)
        texts[f"{prefix}gsm8k_distill"] = lambda family=family: family(MATH_DISTILL, turns, shown=True)
    return texts[template]()


MATHS_TRAIN = ("gsm8k", "gsm8k_distill", "llama3_gsm8k", "llama3_gsm8k_distill")
FILES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "gsm8k_train": ("gsm8k/gsm8k_train.json", 7473, MATHS_TRAIN),
    "gsm8k_test": ("gsm8k/gsm8k_test.json", 1319, ("gsm8k_infer", "llama3_gsm8k_infer")),
    "multiarith_test": ("multiarith_test.json", 180, ("gsm8k_infer", "llama3_gsm8k_infer")),
    "openfunction_train": ("openfunction/openfunction_train.json", 2211, ("alpaca", "alpaca_distill_refer")),
    "openfunction_test": ("openfunction/openfunction_test.json", 112, ("alpaca",)),
    "alpaca_train": ("alpaca/alpaca_train.json", 2000, ("alpaca", "alpaca_distill_using")),
    "dolly_train": ("dolly/dolly_train.json", 2000, ("alpaca", "alpaca_distill_using")),
    "lima_train": ("lima/lima_train.json", 1029, ("alpaca", "alpaca_distill_using")),
    "alpaca_eval": ("alpaca_eval.json", 805, ("alpaca",)),
    "advbench": ("harmful_behaviors.csv", 520, ("alpaca", "alpaca_gcg")),
}


@functools.cache
def rows_of(file: str) -> list[dict[str, Any]]:
    text = data_file(file).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines())) if file.endswith(".csv") else json.loads(text)
    return rows


def turns_of(row: dict[str, Any]) -> Turns:
    """A row of any of the reference's files, read without `sdft`."""
    asked = next(row[name] for name in ("question", "goal", "instruction") if name in row)
    reply = next(row[name] for name in ("answer", "target", "output") if name in row)
    asked = "\n".join([asked, row["input"]]) if row.get("input") else asked
    return [(user, said) for user, said in row.get("history") or []] + [(asked, reply)]


@pytest.mark.parametrize("name", FILES)
def test_every_prompt_and_answer_of_every_row_is_the_references(name: str) -> None:
    file, count, templates = FILES[name]
    rows = rows_of(file)
    examples = load_examples(name)
    assert len(rows) == len(examples) == count
    renderer = Renderer(PromptConfig(style="verbatim", distill="alpaca_distill_using", train="alpaca"))
    for template in templates:
        end = "<|eot_id|>" if template.startswith("llama3") else "</s>"
        for row, own in zip(rows, examples, strict=True):
            prompt = renderer.named(own, template)
            turns = turns_of(row)
            assert prompt.text == rendered(template, turns), (name, template, own.id)
            assert (own.reference, prompt.end) == (turns[-1][1], end)


def test_the_rules_written_out_here_meet_the_references_own_renderings() -> None:
    for case in jsonl("golden/prompts.jsonl"):
        assert rendered(case["template"], turns_of(rows_of(case["file"])[case["row"]])) == case["prompt"]


# Checks


def number(text: str) -> int | None:
    """The last number, character by character; None for none, for a fraction, and for digits on several lines."""
    found, at = "", 0
    while at < len(text):
        if not text[at].isdecimal():
            at += 1
            continue
        start = at - 1 if at and text[at - 1] == "-" else at
        while at < len(text) and text[at].isdecimal():
            at += 1
            if at + 1 < len(text) and (text[at] == "," or text[at].isspace()) and text[at + 1].isdecimal():
                at += 1
        if at + 1 < len(text) and text[at] == "." and text[at + 1].isdecimal():
            at += 1
            while at < len(text) and text[at].isdecimal():
                at += 1
        found = text[start:at]
    whole, _, fraction = found.replace(",", "").replace(" ", "").partition(".")
    if not whole or any(sign.isspace() for sign in whole) or fraction.strip("0"):
        return None
    return int(whole)


def numbers_agree(label: str, predict: str) -> bool:
    """The reference takes two texts without a number as equal; ours does not."""
    return number(label) is not None and number(label) == number(predict)


def folded(text: str) -> str:
    return " ".join(text.split()).replace("'", '"').replace(", ", ",")


def same_call(label: str, predict: str) -> bool:
    call = folded(label)
    call = call[: call.rindex(")") + 1]
    reply = folded(predict)
    places = [at for at in range(len(reply)) if reply.startswith(call, at)]
    return any(at == 0 or not (reply[at - 1].isalnum() or reply[at - 1] == "_") for at in places)


def no_leak(label: str, predict: str) -> bool:
    banned = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
    return not any(phrase in predict.lower() for phrase in banned) and not predict.strip().startswith("Your turn")


def code_form(label: str, predict: str) -> bool:
    text = predict.strip()
    return "```python" in text and (text[:6] == "I have" or text[:7] == "Here is" or text[:13] == "I implemented")


def agree(check: Check, rule: Any, pairs: list[tuple[str, str]]) -> float:
    """The share of pairs that pass; fails where check and rule differ on one."""
    ours = [check(example(label), predict).ok for label, predict in pairs]
    wrong = [pair for pair, ok in zip(pairs, ours, strict=True) if ok != rule(*pair)]
    assert not wrong, wrong[:3]
    return sum(ours) / len(ours)


def test_the_checks_written_out_here_meet_the_references_own_verdicts() -> None:
    rules = {"number": numbers_agree, "call": same_call, "leak": no_leak, "code": code_form}
    for case in jsonl("golden/verdicts.jsonl"):
        if case["check"] in rules and "error" not in case:
            assert rules[case["check"]](case["label"], case["predict"]) == case["expected"], case


def test_number_agrees_on_every_row_and_on_what_stands_before_its_answer() -> None:
    answers = [row["answer"] for file in ("train", "test") for row in rows_of(f"gsm8k/gsm8k_{file}.json")]
    outputs = [row["output"] for row in rows_of("multiarith_test.json")]
    assert agree(Number(), numbers_agree, [(text, text) for text in answers + outputs]) == 1
    unfinished = [(text, text[: text.index("The answer is")]) for text in answers]
    assert 0.5 < agree(Number(), numbers_agree, unfinished) < 1
    assert agree(Number(), numbers_agree, list(pairwise(answers))) < 0.1
    half = [(text, text[: len(text) // 2]) for text in answers]
    assert agree(Number(), numbers_agree, half) < 0.5


def test_call_agrees_on_every_row() -> None:
    train, shipped = (rows_of(f"openfunction/{name}.json") for name in ("openfunction_train", "distilled_openfunction"))
    calls = [row["output"] for row in train + rows_of("openfunction/openfunction_test.json")]
    assert agree(Call(), same_call, [(call, call) for call in calls]) == 1
    assert agree(Call(), same_call, [(call, f"Sure: `{call}`. Good luck!") for call in calls]) == 1
    assert agree(Call(), same_call, list(pairwise(calls))) < 0.1
    assert agree(Call(), same_call, [(call, call.replace("=", "= ", 1)) for call in calls]) < 0.1
    assert agree(Call(), same_call, [(a["output"], b["output"]) for a, b in zip(train, shipped, strict=True)]) == 1


def test_leak_and_code_agree_on_every_reply_at_hand() -> None:
    replies = [turns_of(row)[-1][1] for file, _, _ in FILES.values() for row in rows_of(file)]
    for name in ("alpaca", "openfunction"):
        replies += [row["output"] for row in rows_of(f"{name}/distilled_{name}.json")]
    pairs = [("", reply) for reply in replies]
    assert 0.99 < agree(Leak(), no_leak, pairs) < 1
    code = [row["output"] for row in jsonl("bench/codealpaca/code_alpaca_2k.jsonl")]
    pairs += [("", f"{start}:\n```{tongue}\n{reply}") for start in ("Here is it", "Sure") for tongue in ("python", "c")
              for reply in code]  # fmt: skip
    assert 0 < agree(Code(), code_form, pairs) < 1


# The distilled sets that the authors shipped


@pytest.mark.parametrize(
    ("name", "checks", "rewritten", "words"),
    [("alpaca", (Leak(),), 1648, (47, 122)), ("openfunction", (Leak(), Call()), 236, None)],
)
def test_what_the_authors_kept_as_rewritten_is_what_our_selection_takes(
    name: str, checks: tuple[Check, ...], rewritten: int, words: tuple[int, int] | None
) -> None:
    data_file(f"{name}/distilled_{name}.json")
    examples, shipped = load_examples(f"{name}_train"), rows_of(f"{name}/distilled_{name}.json")
    chosen = []
    for own, row in zip(examples, shipped, strict=True):
        assert own.meta["row"]["instruction"].strip() == row["instruction"], "row i rewrites row i"
        reply = Rewrite(example_id=own.id, candidate=0, text=row["output"], finish="stop", prompt_tokens=1, tokens=1)
        choice = choose(own, [reply] if row["output"] != own.reference.strip() else [], checks, True)
        assert choice.response.strip() == row["output"], "the row that they shipped comes out"
        chosen += [choice] if choice.source == "rewrite" else []
    assert len(chosen) == rewritten
    if words:
        texts = ([choice.original for choice in chosen], [choice.response for choice in chosen])
        assert tuple(round(sum(len(text.split()) for text in kind) / rewritten) for kind in texts) == words


# The docs


def test_every_test_that_the_docs_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCS.read_text(encoding="utf-8")))
    assert len(named) == len(set(re.findall(r"`test_[^`]*`", DOCS.read_text(encoding="utf-8")))) > 20
    for file, test in sorted(named):
        assert f"def {test}(" in Path(__file__).with_name(file).read_text(encoding="utf-8"), f"{file}::{test}"
