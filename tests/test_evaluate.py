"""Evaluating: predictions are kept, resumed, scored and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import sdft
from helpers_pipeline import contents, example, scripted, scripted_recipe, verbatim_prompter
from sdft.benchmarks import Benchmark, Drift, Metric
from sdft.checks import Number
from sdft.console import Console
from sdft.engines import Request, Sampling
from sdft.errors import RunError
from sdft.records import Completion, Example, Prediction, Verdict
from sdft.rundir import RunDir, read_json, read_jsonl
from sdft.stages.evaluate import evaluate, run_compare, tuned_model


class Additions(Benchmark):
    """`3 plus 4 is` → 7."""

    METRICS = {"accuracy": Metric()}

    name: Literal["additions"] = "additions"

    def examples(self) -> list[Example]:
        return [example(number) for number in range(6)]

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        verdict = Number()(example, reply)
        return verdict, {"accuracy": float(verdict.ok)}

    def groups(self, example: Example) -> str | None:
        return "even" if int(example.id[1:]) % 2 == 0 else "odd"


class Noting:
    """An engine that notes what it was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.requests: list[Request] = []

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        asked = list(requests)
        self.requests += asked
        yield from self.inner.generate(asked, sampling)


def predictions(engine: Any, benchmark: Any = None, **more: Any) -> list[Prediction]:
    return list(evaluate(benchmark or Additions(), engine, verbatim_prompter(), Sampling(), **more))


def test_replies_are_judged_with_their_own_row() -> None:
    found = {p.id: p for p in predictions(scripted(replies={"3 plus": "It is 7."}, default="It is 5."))}
    right = {name for name, prediction in found.items() if prediction.verdict.ok}
    assert right == {"e1", "e3"}
    assert (found["e3"].label, found["e3"].predict, found["e3"].group) == ("7", "It is 7.", "odd")
    assert found["e0"].values == {"accuracy": 0.0}


def test_a_row_that_failed_is_left_out_of_the_scores_not_counted_as_wrong() -> None:
    found = predictions(scripted(fail_every=3))
    failed = [prediction for prediction in found if prediction.finish == "error"]
    assert len(found) == 6
    assert [(p.verdict.reason, p.values) for p in failed] == [("generation_error", {})] * 2


def test_seeds_are_the_same_for_every_model_and_differ_by_row_benchmark_and_recipe() -> None:
    first, again, other_seed, other_label = (Noting(scripted()) for _ in range(4))
    predictions(first, seed=1)
    predictions(again, seed=1, examples=[example(4)])
    predictions(other_seed, seed=2)
    predictions(other_label, Additions(label="twice"), seed=1)
    seeds = {request.id: request.seed for request in first.requests}
    assert {request.id: request.seed for request in again.requests} == {"e4": seeds["e4"]}
    everything = [request.seed for engine in (first, other_seed, other_label) for request in engine.requests]
    assert len(set(everything)) == len(everything)


def test_further_values_are_put_beside_the_benchmarks_own() -> None:
    found = predictions(scripted(), values={"e2": {"kl": 0.5}})
    assert {p.id: p.values for p in found}["e2"] == {"accuracy": 0.0, "kl": 0.5}


def test_an_interrupted_benchmark_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, name="whole")
    whole = sdft.run(tree).path
    tree["evaluate"]["engine"] = {"name": "scripted", "die_after": 2}
    with pytest.raises(sdft.EngineError, match="died after 2"):
        sdft.run({**tree, "name": "part"})
    part = whole.with_name("part")
    assert len((part / "eval/seed/drift/predictions.jsonl").read_text().splitlines()) == 2
    result = sdft.run({**tree, "name": "part"}, ["evaluate.engine.die_after=null"])
    assert result.done[0] == "eval/seed"
    for name in ("eval/seed/drift/predictions.jsonl", "eval/seed/drift/scores.json"):
        assert contents(part)[name] == contents(whole)[name]


def test_scores_have_intervals_groups_and_notes(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    tree["evaluate"]["engine"] = {"name": "scripted", "fail_every": 5, "truncate_every": 4}
    scores = read_json(sdft.run(tree).path / "eval/seed/drift/scores.json")
    assert (scores["model"], scores["benchmark"], scores["label"], scores["role"]) == (
        "seed", "drift", "drift", "retention",
    )  # fmt: skip
    [words] = scores["scores"]
    assert (words["metric"], words["n"], words["kind"]) == ("reply_words", 4, "mean")
    assert words["low"] <= words["value"] <= words["high"]
    assert scores["notes"] == ["1 row left out: generation_error", "1 of 5 replies were cut at 128 tokens"]
    assert scores["main"] == "kl"
    assert all(set(means) == {"reply_words"} for means in scores["groups"].values())


def test_predictions_stand_in_the_datasets_order(tmp_path: Path) -> None:
    folder = sdft.run(scripted_recipe(tmp_path)).path
    found = read_jsonl(folder / "eval/seed/drift/predictions.jsonl", Prediction)
    assert [prediction.id for prediction in found] == [item.id for item in Drift(limit=5).examples()]


def test_a_tuned_model_is_an_adapter_on_the_seed_or_a_model_of_its_own(tmp_path: Path) -> None:
    recipe = sdft.load_recipe(scripted_recipe(tmp_path))
    run = RunDir(tmp_path)
    (run / "train/sft").mkdir(parents=True)
    assert tuned_model(recipe, run, "seed") == recipe.model
    whole = tuned_model(recipe, run, "sft")
    assert (whole.name, whole.adapter) == (str(run / "train/sft"), None)
    (run / "train/sft/adapter_config.json").write_text("{}", encoding="utf-8")
    adapter = tuned_model(recipe, run, "sft")
    assert (adapter.name, adapter.adapter) == ("none", str(run / "train/sft"))


def test_comparisons_pair_rows_with_the_seed_and_sdft_with_sft(tmp_path: Path) -> None:
    recipe = sdft.load_recipe(scripted_recipe(tmp_path, methods=["sft", "sdft"]))
    run = RunDir(tmp_path / "run")
    for model, words in (("seed", 4), ("sft", 1), ("sdft", 3)):
        lines = [
            Prediction(
                id=item.id, label="", predict="", finish="stop", tokens=1, verdict=Verdict(ok=True, reason="ok"),
                values={"reply_words": float(words + index % 2)},
            ).model_dump_json()
            for index, item in enumerate(Drift(limit=5).examples())
        ]  # fmt: skip
        path = run / f"eval/{model}/drift/predictions.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_compare(recipe, run, Console(quiet=True))
    found = json.loads((run / "eval/comparisons.json").read_text(encoding="utf-8"))
    assert [(c["model"], c["baseline"], c["difference"]) for c in found] == [
        ("sft", "seed", -3.0),
        ("sdft", "seed", -1.0),
        ("sdft", "sft", 2.0),
    ]


def test_drift_without_the_seeds_replies_says_so(tmp_path: Path) -> None:
    from sdft.stages.evaluate import run_evaluate

    recipe = sdft.load_recipe(scripted_recipe(tmp_path, methods=["sft"]))
    with pytest.raises(RunError, match=r"predictions\.jsonl: missing|seed model's replies"):
        run_evaluate(recipe, RunDir(tmp_path / "run"), "sft", Console(quiet=True))


def test_an_engine_without_distributions_leaves_drift_unmeasured_and_says_so(tmp_path: Path) -> None:
    from sdft.stages.evaluate import run_evaluate

    recipe = sdft.load_recipe(scripted_recipe(tmp_path, methods=["sft"]))
    run, quiet = RunDir(tmp_path / "run"), Console(quiet=True)
    run_evaluate(recipe, run, "seed", quiet)
    notes = run_evaluate(recipe, run, "sft", quiet)
    assert notes == ["sft on drift: not measured with this engine: kl, same_argmax"]
    assert [s["metric"] for s in read_json(run / "eval/sft/drift/scores.json")["scores"]] == ["reply_words"]
