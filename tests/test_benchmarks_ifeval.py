"""`ifeval`: the harness's verdicts, for every prompt."""

from __future__ import annotations

import random
import subprocess
import sys
from statistics import fmean
from typing import Any

import pytest

from helpers_checks import data_file
from sdft.benchmarks import IfEval, ifeval
from sdft.benchmarks.ifeval import FILE
from sdft.errors import BenchmarkError
from sdft.records import Example, Message, Prediction
from sdft.stats import score

REPLIES = (
    "",
    "I can't help with that.",
    '"all of this is written in small letters. there are two sentences here!"',
    "THIS IS SHOUTED. P.S. IT ENDS HERE. Dr. Smith met Mrs. Jones at 5.30 p.m. in Washington D.C. yesterday.",
    '<<A title>>\n\n* one [name]\n* two *marked* [place]\n\n***\n\nMy answer is maybe.\n******\n{"a": 1}\n\nP.P.S. bye',
)
DRAWN = {"1122", "1129"}
"""Prompts whose letter the harness draws."""


def prepared() -> IfEval:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    data_file(FILE)
    benchmark = IfEval()
    problems = list(benchmark.missing())
    if problems:
        pytest.skip("; ".join(problems))
    return benchmark


def by_harness(row: dict[str, Any], reply: str) -> list[bool]:
    """Strict verdicts, straight from the checkers."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    found = []
    for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        checker = INSTRUCTION_DICT[name](name)
        checker.build_description(**{key: value for key, value in arguments.items() if value})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=row["prompt"])
        found.append(bool(reply.strip() and checker.check_following(reply)))
    return found


def test_verdicts_and_scores_are_the_harnesss_for_every_prompt() -> None:
    benchmark = prepared()
    examples = benchmark.examples()
    assert len(examples) == len({example.id for example in examples}) == 540
    benchmark.judge(examples[0], "loads the checkers")
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results

    predictions: list[Prediction] = []
    theirs: list[dict[str, Any]] = []
    for number, example in enumerate(examples):
        row = example.meta["row"]
        for reply in (*REPLIES, f"{row['prompt']}\n\nOne, two, three. " * 3):
            verdict, values = benchmark.judge(example, reply)
            if example.id in DRAWN:
                continue
            strict = by_harness(row, reply)
            assert verdict.ok == all(strict) == bool(values["prompt_level_strict"])
            failed = [name for name, ok in zip(row["instruction_id_list"], strict, strict=True) if not ok]
            assert verdict.detail == ", ".join(failed)
        reply = (*REPLIES, row["prompt"])[number % (len(REPLIES) + 1)]
        random.seed(ifeval.seed_for("ifeval", row["key"]))
        theirs.append(process_results(row, [reply]))
        verdict, values = benchmark.judge(example, reply)
        predictions.append(
            Prediction(id=example.id, label="", predict=reply, finish="stop", tokens=1, verdict=verdict, values=values)
        )
    ours = {s.metric: s.value for s in score("m", "ifeval", benchmark.METRICS, predictions)}
    for metric in ("prompt_level_strict", "prompt_level_loose"):
        assert ours[metric] == pytest.approx(fmean(found[f"{metric}_acc"] for found in theirs))
    for metric in ("inst_level_strict", "inst_level_loose"):
        assert ours[metric] == pytest.approx(agg_inst_level_acc([found[f"{metric}_acc"] for found in theirs]))
    assert 0 < ours["prompt_level_strict"] < ours["prompt_level_loose"] < ours["inst_level_loose"] < 1


def test_known_replies() -> None:
    benchmark = prepared()
    rows = {example.id: example for example in benchmark.examples()}
    assert rows["1001"].meta["row"]["instruction_id_list"] == ["punctuation:no_comma"]
    assert benchmark.judge(rows["1001"], "Go thou to Kyoto. Then rest.")[0].ok
    verdict, values = benchmark.judge(rows["1001"], "Go thou, to Kyoto.")
    assert (verdict.ok, verdict.reason, verdict.detail) == (False, "not_followed", "punctuation:no_comma")
    assert set(values.values()) == {0.0}
    loose = benchmark.judge(rows["1001"], "Sure, here it is:\nGo thou to Kyoto.")[1]
    assert (loose["prompt_level_strict"], loose["prompt_level_loose"]) == (0.0, 1.0)


def test_a_reply_gets_the_same_verdict_each_time_and_chance_elsewhere_is_left_alone() -> None:
    benchmark = prepared()
    for example in benchmark.examples():
        if example.id in DRAWN:
            random.seed(1)
            state = random.getstate()
            assert len({str(benchmark.judge(example, "eeee tttt aaaa oooo !!!! ####")) for _ in range(20)}) == 1
            assert random.getstate() == state


def test_limit_keeps_the_first_and_weighs_by_them() -> None:
    benchmark = prepared()
    first = IfEval(limit=3).examples()
    assert [example.id for example in first] == [example.id for example in benchmark.examples()[:3]]
    assert {example.meta["mean_instructions"] for example in first} == {
        fmean(len(example.meta["row"]["kwargs"]) for example in first)
    }


def test_a_row_without_instructions_is_refused() -> None:
    stray = Example(id="7", messages=(Message(role="user", content="Hi"),), reference="")
    with pytest.raises(BenchmarkError, match="'7' brings no instructions"):
        IfEval().judge(stray, "Hello.")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(ifeval, "PUNKT", "tokenizers/no_such_thing")
    monkeypatch.setattr(ifeval, "PACKAGES", {"no_such_module": "no-such-package"})
    package, punkt, data = IfEval().missing()
    assert package == "not installed: no-such-package; pip install -e '.[eval]' where sdft was cloned"
    assert "nltk.downloader punkt_tab" in punkt
    assert data.startswith(f"{FILE}: in no folder of SDFT_DATA_DIR")
    with pytest.raises(BenchmarkError, match="in no folder of SDFT_DATA_DIR"):
        IfEval().examples()


def test_looking_for_what_is_missing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sdft.benchmarks import IfEval, Knowledge\n"
        "list(IfEval().missing()), list(Knowledge().missing())\n"
        "print(sorted({'lm_eval', 'nltk', 'langdetect', 'torch', 'datasets', 'llama_index.core'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
