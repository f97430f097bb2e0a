"""Benchmarks that are a dataset and a check, and what all benchmarks have in common."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import sdft.benchmarks
from helpers_checks import data_file, jsonl
from sdft.benchmarks import (
    AdvBench,
    AnyBenchmark,
    Benchmark,
    BfclSimple,
    Drift,
    Gsm8k,
    HarnessBenchmark,
    MultiArith,
    OpenFunction,
    OwnDataset,
    ReasoningGym,
)
from sdft.checks import Answer
from sdft.errors import DataError, RecipeError
from sdft.prompts import PromptConfig, Renderer, templates
from sdft.recipe import load_recipe

MEMBERS: tuple[type[Benchmark], ...] = get_args(get_args(AnyBenchmark)[0])
DATA = {
    Gsm8k: ("gsm8k/gsm8k_test.json", 1319),
    MultiArith: ("multiarith_test.json", 180),
    OpenFunction: ("openfunction/openfunction_test.json", 112),
    AdvBench: ("harmful_behaviors.csv", 520),
}


def test_every_benchmark_module_is_in_the_union() -> None:
    defined = set()
    for module in pkgutil.iter_modules(sdft.benchmarks.__path__):
        if module.name == "base" or module.name.startswith("_") or module.ispkg:
            continue
        loaded = importlib.import_module(f"sdft.benchmarks.{module.name}")
        found = {
            item
            for _, item in inspect.getmembers(loaded, inspect.isclass)
            if issubclass(item, Benchmark) and item.__module__ == loaded.__name__
        }
        assert found, f"{module.name} defines no benchmark"
        defined |= found
    assert defined == set(MEMBERS)
    assert {member.__name__ for member in MEMBERS} <= set(sdft.benchmarks.__all__)


def needs(member: type[Benchmark]) -> dict[str, Any]:
    """What has no default."""
    return {"data": {"dataset": "gsm8k_test"}, "check": {"name": "number"}} if member is OwnDataset else {}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_every_benchmark_can_be_named_alone(member: type[Benchmark]) -> None:
    name = member.model_fields["name"].default
    benchmark = TypeAdapter(AnyBenchmark).validate_python({"name": name} | needs(member))
    assert type(benchmark) is member
    assert member.__doc__ and member.METRICS and member.ROLE in ("task", "retention")
    if not issubclass(member, HarnessBenchmark):
        assert member(template="{{ instruction }}", **needs(member)).template_for("chat") == "{{ instruction }}"


def test_labels_name_folders() -> None:
    assert Gsm8k(label="gsm8k-greedy.2").label == "gsm8k-greedy.2"
    for label in ("a/b", "..", "", ".hidden"):
        with pytest.raises(ValidationError):
            Gsm8k(label=label)


@pytest.mark.parametrize("member", DATA, ids=lambda member: member.__name__)
def test_reference_sets_have_their_rows(member: type[Benchmark]) -> None:
    file, count = DATA[member]
    data_file(file)
    examples = member().examples()
    assert len(examples) == len({example.id for example in examples}) == count
    assert member(limit=3).examples() == examples[:3]
    assert not list(member().missing())


@pytest.mark.parametrize("member", [Gsm8k, MultiArith, OpenFunction], ids=lambda member: member.__name__)
def test_gold_replies_score_full_marks(member: type[Benchmark]) -> None:
    data_file(DATA[member][0])
    benchmark = member()
    for example in benchmark.examples():
        verdict, values = benchmark.judge(example, example.reference)
        assert verdict.ok, (example.id, verdict)
        assert values == dict.fromkeys(benchmark.METRICS, 1.0)


def test_openfunction_gives_half_credit_beside() -> None:
    data_file(DATA[OpenFunction][0])
    benchmark = OpenFunction()
    example = next(
        item for item in benchmark.examples() if item.reference == "temperature.celsius_to_fahrenheit(celsius=25)"
    )
    verdict, values = benchmark.judge(example, "temperature.celsius_to_fahrenheit(25)")
    assert (verdict.reason, values) == ("call_differs", {"accuracy": 0.0, "positional": 0.5})
    assert benchmark.judge(example, "I cannot.")[1] == {"accuracy": 0.0, "positional": 0.0}


def test_reference_templates_belong_to_the_verbatim_style() -> None:
    assert Gsm8k().template_for("verbatim") == MultiArith().template_for("verbatim") == "gsm8k_infer"
    assert OpenFunction().template_for("verbatim") == AdvBench().template_for("verbatim") == "alpaca"
    assert Gsm8k().template_for("chat") is OpenFunction().template_for("chat") is None
    assert Gsm8k(template="llama3_gsm8k_infer").template_for("verbatim") == "llama3_gsm8k_infer"


def test_own_templates_exist_in_their_style() -> None:
    for benchmark in (*(member(**needs(member)) for member in MEMBERS), AdvBench(mode="jailbreak")):
        for style in ("chat", "verbatim"):
            name = benchmark.template_for(style)
            assert name is None or templates()[name].style == style


def test_advbench_modes() -> None:
    data_file(DATA[AdvBench][0])
    raw, jailbreak = AdvBench(), AdvBench(mode="jailbreak")
    assert (raw.label, jailbreak.label) == ("advbench_raw", "advbench_jailbreak")
    assert AdvBench(mode="jailbreak", label="mine").label == "mine"
    assert raw.ROLE == "retention"
    renderer, examples, checked = Renderer(PromptConfig(style="verbatim")), raw.examples(), 0
    for case in jsonl("golden/prompts.jsonl"):
        if case["file"] == "harmful_behaviors.csv":
            benchmark = {"alpaca": raw, "alpaca_gcg": jailbreak}[case["template"]]
            prompt = renderer.infer(examples[case["row"]], benchmark.template_for("verbatim"))
            assert prompt.text == case["prompt"]
            checked += 1
    assert checked == 6


def test_advbench_counts_refusals() -> None:
    data_file(DATA[AdvBench][0])
    (example,) = AdvBench(limit=1).examples()
    assert AdvBench().judge(example, "I cannot help with that.")[1] == {"safe": 1.0}
    assert AdvBench().judge(example, example.reference)[1] == {"safe": 0.0}


def test_bfcl_gold_calls_pass_and_parts_are_disjoint() -> None:
    try:
        whole = BfclSimple(part="all").examples()
    except DataError as error:
        pytest.skip(str(error))
    assert len(whole) == 400
    failing = [item.id for item in whole if not BfclSimple().judge(item, item.reference)[0].ok]
    assert not failing
    parts = [{item.id for item in BfclSimple(part=part).examples()} for part in ("train", "dev", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert BfclSimple().examples() == BfclSimple(part="test").examples()


def test_reasoning_gym_scores_by_our_rule_and_its_own() -> None:
    pytest.importorskip("reasoning_gym")
    benchmark = ReasoningGym(size=40, config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})
    examples = benchmark.examples()
    assert examples == benchmark.examples()
    for example in examples:
        assert benchmark.judge(example, example.reference)[1] == {"accuracy": 1.0, "own_score": 1.0}
        verdict, values = benchmark.judge(example, f"The answer is {int(example.reference) + 1}.")
        assert (verdict.reason, values["accuracy"]) == ("number_differs", 0.0)
        in_words = benchmark.judge(example, f"The answer is {example.reference}.")[1]
        assert in_words["accuracy"] == 1.0 and 0 < in_words["own_score"] < 1
        assert benchmark.judge(example, "")[1] == {"accuracy": 0.0, "own_score": 0.0}
    # A row as it comes back from a run folder is judged alike.
    again = type(examples[0]).model_validate_json(examples[0].model_dump_json())
    assert benchmark.judge(again, "5") == benchmark.judge(examples[0], "5")


def test_reasoning_gym_keeps_clear_of_the_training_rows() -> None:
    pytest.importorskip("reasoning_gym")
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    training = {item.instruction for item in ReasoningGym(size=100, seed=0, config=config).examples()}
    drawn = {item.instruction for item in ReasoningGym(size=100, config=config).examples()}
    assert training & drawn  # so small a task asks some questions twice
    benchmark = TypeAdapter(AnyBenchmark).validate_python(
        {"name": "reasoning_gym", "size": 100, "config": config, "unique": True, "exclude": [{"seed": 0, "size": 100}]}
    )
    kept = [item.instruction for item in benchmark.examples()]
    assert kept and set(kept) == drawn - training and len(kept) == len(set(kept))


def test_unknown_task_is_named() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="chain_summ"):
        ReasoningGym(task="chain_summ").examples()


def test_absent_data_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", "")
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path))
    assert not list(Gsm8k().missing())  # it can be fetched
    absent = Gsm8k().unfetched()
    assert absent and "gsm8k_test.json" in absent and "SDFT_DATA_DIR" in absent


def test_drift_needs_nothing() -> None:
    assert not list(Drift().missing())
    assert json.loads(Drift().model_dump_json())["sampling"]["max_new_tokens"] == 128


def test_a_dataset_of_ones_own_takes_any_check_and_plain_names() -> None:
    tree: dict[str, Any] = {"model": "m", "methods": []}
    own = {"name": "dataset", "data": "mine.jsonl", "check": "answer", "limit": 5}
    tree["evaluate"] = {"benchmarks": [own]}
    [benchmark] = load_recipe(tree).evaluate.benchmarks
    assert isinstance(benchmark, OwnDataset)
    assert (benchmark.source().dataset, benchmark.source().limit, benchmark.rule()) == ("mine.jsonl", 5, Answer())
    own |= {"data": {"dataset": "mine.jsonl", "limit": 3}, "check": {"name": "answer", "labels": ["yes", "no"]}}
    [benchmark] = load_recipe(tree).evaluate.benchmarks
    assert isinstance(benchmark, OwnDataset)
    assert (benchmark.source().limit, benchmark.rule()) == (3, Answer(labels=("yes", "no")))
    own |= {"data": {"dataset": "mine.jsonl", "limt": 3}, "check": "anwser"}
    with pytest.raises(RecipeError) as caught:
        load_recipe(tree)
    assert "evaluate.benchmarks.0.data.limt: unknown key; did you mean limit" in str(caught.value).replace("'", "")
    assert "evaluate.benchmarks.0.check: no 'anwser'" in str(caught.value)
