"""`knowledge`: the harness on our models, its tasks from local files and, with made-up rows, as from the hub."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import sdft
from helpers_checks import data_file, jsonl
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from sdft.benchmarks import Knowledge
from sdft.benchmarks.harness_tasks import local
from sdft.benchmarks.knowledge import FILES
from sdft.console import Console
from sdft.engines import Continuation, Sampling, TransformersSettings
from sdft.errors import BenchmarkError
from sdft.models import ModelConfig
from sdft.records import Prediction
from sdft.rundir import read_json
from sdft.stats import score

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=4096)
    return ModelConfig(name=str(folder), dtype="float32")


@pytest.fixture(scope="module")
def measured(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Prediction], Path]:
    """All tasks by two questions each, without a network."""
    for files in FILES.values():
        data_file(files[0])
    folder = tmp_path_factory.mktemp("eval") / "seed/knowledge"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
        return Knowledge(limit=2).measure(model, folder, QUIET), folder


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / task / f"samples_{task}_local.jsonl").read_text().splitlines()]


def test_all_tasks_give_a_row_for_each_question(measured: tuple[list[Prediction], Path]) -> None:
    predictions, _ = measured
    examples = Knowledge(limit=2).examples()
    assert len(predictions) == 2 * (57 + 6)
    assert [(p.id, p.label) for p in predictions] == [(example.id, example.reference) for example in examples]
    assert len({p.id for p in predictions}) == len(predictions)
    assert {p.group for p in predictions if "mmlu" in p.values} >= {"mmlu_anatomy", "mmlu_virology"}
    counts = {s.metric: s.n for s in score("seed", "knowledge", Knowledge.METRICS, predictions)}
    assert set(counts) == set(Knowledge.METRICS)
    assert (counts["accuracy"], counts["mmlu"], counts["arc"], counts["hellaswag_norm"]) == (124, 114, 4, 2)


def test_scores_are_the_harnesss_own(measured: tuple[list[Prediction], Path]) -> None:
    predictions, folder = measured
    for task in FILES:
        results = read_json(folder / task / "results.json")
        assert results["config"]["limit"] == 2 and set(results["n-shot"].values()) == {0}
        for name, of_task in results["results"].items():
            rows = [p.values for p in predictions if p.group == name.removesuffix("_local")]
            rows = rows or [p.values for p in predictions if "mmlu" in p.values]  # the group of all subjects
            assert of_task["acc,none"] == pytest.approx(sum(values[task] for values in rows) / len(rows))
            if "acc_norm,none" in of_task:
                assert of_task["acc_norm,none"] == pytest.approx(sum(v[f"{task}_norm"] for v in rows) / len(rows))


def test_one_file_holds_all_tasks_and_their_groups(measured: tuple[list[Prediction], Path]) -> None:
    predictions, folder = measured
    merged = read_json(folder / "results.json")
    means = {s.metric: s.value for s in score("seed", "knowledge", Knowledge.METRICS, predictions)}
    names = {"ai2_arc_local": "arc", "mmlu_local": "mmlu", "truthfulqa_local": "truthfulqa"}
    assert set(merged["groups"]) == set(names)
    assert len(merged["group_subtasks"]["mmlu_local"]) == 57
    for name, metric in (names | {f"{t}_local": t for t in ("hellaswag", "winogrande", "arc_easy")}).items():
        assert merged["results"][name]["acc,none"] == pytest.approx(means[metric]), name
    assert merged["groups"]["ai2_arc_local"]["acc_norm,none"] == pytest.approx(
        (means["arc_easy_norm"] + means["arc_challenge_norm"]) / 2
    )
    mc1, mc2 = means["truthfulqa_mc1"], means["truthfulqa_mc2"]
    assert means["truthfulqa"] == pytest.approx((2 * mc1 + mc2) / 3)
    single = read_json(folder / "arc_easy/results.json")
    assert merged["configs"]["arc_easy_local"] == single["configs"]["arc_easy_local"]
    assert set(single) <= set(merged)


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        (["truthfulqa"], ("truthfulqa_mc1", "truthfulqa_mc2")),
        (["ai2_arc", "mmlu"], ("arc_easy", "arc_challenge", "mmlu")),
        (["mmlu", "truthfulqa", "arc", "hellaswag", "winogrande"], (
            "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "arc_easy", "arc_challenge", "hellaswag", "winogrande"
        )),
    ],
)  # fmt: skip
def test_groups_go_by_the_harnesss_names(names: list[str], tasks: tuple[str, ...]) -> None:
    assert Knowledge.model_validate({"tasks": names}).tasks == tasks


def test_examples_before_a_question_are_set_by_group_too() -> None:
    knowledge = Knowledge.model_validate({"tasks": ["ai2_arc"], "num_fewshot": {"ai2_arc": 25}})
    assert knowledge.num_fewshot == {"arc_easy": 25, "arc_challenge": 25}


def test_a_question_of_truthfulqa_counts_once(model: ModelConfig, tmp_path: Path) -> None:
    data_file(FILES["truthfulqa_mc1"][0])
    found = Knowledge.model_validate({"tasks": ["truthfulqa"], "limit": 3}).measure(model, tmp_path / "both", QUIET)
    first, second = found[:3], found[3:]
    assert [p.values["truthfulqa"] for p in first] == pytest.approx(
        [(2 * a.values["truthfulqa_mc1"] + b.values["truthfulqa_mc2"]) / 3 for a, b in zip(first, second, strict=True)]
    )
    assert not any("truthfulqa" in p.values for p in second)
    alone = Knowledge(tasks=("truthfulqa_mc1",), limit=2).measure(model, tmp_path / "alone", QUIET)
    assert not any("truthfulqa" in p.values for p in alone)
    assert "groups" not in read_json(tmp_path / "alone/results.json")


def test_answers_have_the_likelihoods_that_our_engine_gives_them(model: ModelConfig, tmp_path: Path) -> None:
    for task in ("arc_easy", "winogrande"):
        data_file(FILES[task][0])
    count = 12
    predictions = Knowledge(tasks=("arc_easy", "winogrande"), limit=count).measure(model, tmp_path, QUIET)
    asked = [
        (f"{row['query']}\nAnswer:", [f" {choice}" for choice in row["choices"]], row["gold"])
        for row in jsonl(FILES["arc_easy"][0])[:count]
    ]
    paired = jsonl(FILES["winogrande"][0])[:count]
    items = [Continuation("", prompt, reply) for prompt, replies, _ in asked for reply in replies]
    items += [
        Continuation("", before, f" {row['continuation']}") for row in paired for before in row["context_options"]
    ]
    engine = TransformersSettings().open(model)
    sums = [sum(item.logprobs) for item in engine.logprobs(items)]
    engine.close()
    logged = samples(tmp_path, "arc_easy") + samples(tmp_path, "winogrande")
    assert [float(x) for row in logged for x, _ in row["filtered_resps"]] == pytest.approx(sums, abs=1e-2)
    golds = [gold for *_, gold in asked] + [row["gold"] for row in paired]
    offered = [row[1] for row in asked] + [row["context_options"] for row in paired]
    for gold, choices, prediction in zip(golds, offered, predictions, strict=True):
        mine, sums = sums[: len(choices)], sums[len(choices) :]
        best = mine.index(max(mine))
        assert prediction.predict == choices[best].strip()
        assert prediction.verdict.ok == (best == gold) == bool(prediction.values["accuracy"])
    norm = [prediction.values["arc_easy_norm"] for prediction in predictions[:count]]
    lengths = [[float(x) / (len(c) - 1) for (x, _), c in zip(row["filtered_resps"], offered[i], strict=True)]
               for i, row in enumerate(logged[:count])]  # fmt: skip
    assert norm == [float(means.index(max(means)) == gold) for means, gold in zip(lengths, golds, strict=False)]


def test_finished_tasks_are_not_run_again_and_unfinished_ones_are(
    measured: tuple[list[Prediction], Path], model: ModelConfig, tmp_path: Path
) -> None:
    predictions, done = measured
    folder = tmp_path / "seed/knowledge"
    shutil.copytree(done, folder)
    nowhere = ModelConfig(name="/nowhere")
    assert Knowledge(limit=2).measure(nowhere, folder, QUIET) == predictions
    (folder / "arc_easy/predictions.jsonl").unlink()  # as where the process was killed before the last file
    (folder / "arc_easy/results.json").write_text("{")
    with pytest.raises(sdft.ModelError, match="no such folder"):
        Knowledge(limit=2).measure(nowhere, folder, QUIET)
    stamp = (folder / "mmlu/results.json").stat().st_mtime_ns
    assert Knowledge(limit=2).measure(model, folder, QUIET) == predictions
    assert read_json(folder / "arc_easy/results.json")["n-shot"] == {"arc_easy_local": 0}
    assert (folder / "mmlu/results.json").stat().st_mtime_ns == stamp


def test_the_adapter_is_part_of_the_model(
    measured: tuple[list[Prediction], Path], model: ModelConfig, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model.name), LoraConfig(target_modules=["q_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(tmp_path / "adapter")
    config = model.model_copy(update={"adapter": str(tmp_path / "adapter")})
    Knowledge(tasks=("arc_easy",), limit=2).measure(config, tmp_path / "out", QUIET)
    seed, with_adapter = samples(measured[1], "arc_easy"), samples(tmp_path / "out", "arc_easy")
    assert [row["arguments"] for row in seed] == [row["arguments"] for row in with_adapter]
    assert [row["filtered_resps"] for row in seed] != [row["filtered_resps"] for row in with_adapter]
    assert read_json(tmp_path / "out/arc_easy/results.json")["config"]["model_args"]["peft"] == config.adapter


def test_examples_before_an_mmlu_question_are_of_its_subject(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_file(FILES["mmlu"][0])
    monkeypatch.setattr(local, "subjects", lambda file: ["virology"])
    Knowledge(tasks=("mmlu",), num_fewshot={"mmlu": 3}, limit=1).measure(model, tmp_path, QUIET)
    [line] = (tmp_path / "mmlu/samples_mmlu_virology_local.jsonl").read_text().splitlines()
    prompt = json.loads(line)["arguments"][0][0]
    shots = [row["question"].strip() for row in jsonl(FILES["mmlu"][1]) if row["subject"] == "virology"]
    assert prompt.startswith("The following are multiple choice questions (with answers) about virology.\n\n")
    assert [shot in prompt for shot in shots] == [True] * 3 + [False] * 2
    assert prompt.count("\nAnswer:") == 4 and prompt.endswith("\nAnswer:")


def test_a_run_measures_the_model_whatever_the_engine(model: ModelConfig, tmp_path: Path) -> None:
    data_file(FILES["arc_easy"][0])
    tree = scripted_recipe(tmp_path, model={"name": model.name, "dtype": "float32"})
    asked = {"name": "knowledge", "tasks": ["arc_easy", "truthfulqa_mc2"], "limit": 3}
    tree["evaluate"]["benchmarks"] = [asked, {"name": "drift", "limit": 2}]
    result = sdft.run(tree)
    scores = read_json(result.path / "eval/seed/knowledge/scores.json")
    assert (scores["role"], scores["main"], scores["n"], scores["notes"]) == ("retention", "accuracy", 6, [])
    assert {s["metric"]: s["n"] for s in scores["scores"]} == dict.fromkeys(
        ("accuracy", "arc", "arc_easy", "arc_easy_norm", "truthfulqa_mc2"), 3
    )
    assert set(scores["groups"]) == {"arc_easy", "truthfulqa_mc2"}
    assert (result.path / "eval/seed/drift/scores.json").exists()
    assert sdft.run(tree).done == ()
    tree["evaluate"]["benchmarks"][0]["batch_size"] = 2
    assert sdft.run(tree).done == ()  # what was measured stands
    with pytest.raises(sdft.RecipeError, match="'none': no such folder"):
        sdft.run({**tree, "model": "none", "name": "modelless"})


def test_the_api_measures_too(model: ModelConfig) -> None:
    data_file(FILES["winogrande"][0])
    found = sdft.evaluate(Knowledge(tasks=("winogrande",), limit=2), model)
    assert [p.id for p in found] == ["winogrande_local-0", "winogrande_local-1"]


def test_source_is_settled_when_the_recipe_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data_file(FILES["mmlu"][0])
    assert Knowledge().source == Knowledge(num_fewshot={"mmlu": 5}).source == "local"
    assert Knowledge(num_fewshot={"arc_challenge": 25}).source == "hub"
    [problem] = Knowledge(num_fewshot={"arc_challenge": 25}, source="local").missing()
    assert problem.startswith("num_fewshot.arc_challenge: the local files have no examples")
    assert Knowledge().forecast(3, Sampling()) is None
    monkeypatch.setenv("SDFT_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    assert Knowledge().source == "hub"
    assert not list(Knowledge().missing())
    said = Knowledge.model_validate({"tasks": ["arc", "winogrande"]}).forecast(3, Sampling())
    assert said is not None and said.startswith("its data comes from the hub: allenai/ai2_arc, allenai/winogrande; ")
    [problem] = Knowledge(tasks=("hellaswag",), source="local").missing()
    assert problem.startswith("bench/hellaswag/hellaswag_2000.jsonl.gz: in no folder of SDFT_DATA_DIR")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ["arc_easy", "arc_easy"]}, "'arc_easy' is named twice"),
        ({"tasks": ["arc", "ai2_arc"]}, "'arc_challenge' is named twice"),
        ({"tasks": ["truthfulqa_gen"]}, "tasks.0"),
        ({"num_fewshot": {"truthfulqa": 5}}, "six examples in the prompt"),
        ({"tasks": []}, "at least one"),
        ({"num_fewshot": {"truthfulqa_mc1": 5}}, "six examples in the prompt"),
        ({"num_fewshot": {"mmlu": -1}}, "no number of examples"),
        ({"template": "plain"}, "template: has no effect"),
        ({"sampling": {"max_new_tokens": 5}}, "sampling: has no effect"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Knowledge.model_validate(settings)


def hub_rows(path: str) -> dict[str, list[dict[str, Any]]]:
    """Two rows in the layout of each hub dataset."""
    rows: dict[str, list[dict[str, Any]]] = {
        "cais/mmlu": [{"question": q, "choices": list("wxyz"), "answer": 2, "subject": "s"} for q in ("One?", "Two?")],
        "allenai/ai2_arc": [
            {"question": q, "choices": {"text": ["oxygen", "helium"], "label": ["A", "B"]}, "answerKey": "B"}
            for q in ("Which gas?", "Which light gas?")
        ],
        "Rowan/hellaswag": [
            {"activity_label": "Chopping", "ctx_a": a, "ctx_b": "he", "endings": ["stops.", "sings."], "label": "1"}
            for a in ("A man stands.", "A man sits.")
        ],
        "allenai/winogrande": [
            {"sentence": f"Ann beat Eve so _ {end}", "option1": "Ann", "option2": "Eve", "answer": "1"}
            for end in ("won.", "smiled.")
        ],
        "truthfulqa/truthful_qa": [
            {"question": q, "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
             "mc2_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]}}
            for q in ("Can pigs fly?", "Can pigs sing?")
        ],
    }  # fmt: skip
    return dict.fromkeys(("train", "validation", "test", "dev"), rows[path])


def test_hub_tasks_are_the_harnesss_own(model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(path: str, **_: Any) -> Any:
        splits = {name: datasets.Dataset.from_list(rows) for name, rows in hub_rows(path).items()}
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    knowledge = Knowledge(source="hub", num_fewshot={"arc_challenge": 1}, limit=1)
    predictions = knowledge.measure(model, tmp_path, QUIET)
    assert [p.id for p in predictions] == [example.id for example in knowledge.examples()]
    ids = {p.id for p in predictions}
    assert len(ids) == 57 + 6 and {"mmlu_anatomy-0", "truthfulqa_mc2-0", "winogrande-0"} <= ids
    labels = {p.id: p.label for p in predictions}
    assert (labels["mmlu_anatomy-0"], labels["arc_easy-0"], labels["hellaswag-0"]) == ("C", "helium", "sings.")
    assert (labels["winogrande-0"], labels["truthfulqa_mc1-0"]) == ("Ann beat Eve so Ann", "No.")
    results = read_json(tmp_path / "arc_challenge/results.json")
    assert results["n-shot"] == {"arc_challenge": 1}
    merged = read_json(tmp_path / "results.json")["results"]
    # what the reference's scripts read
    assert all("acc,none" in merged[name] for name in ("mmlu", "truthfulqa", "ai2_arc", "hellaswag", "winogrande"))
    [mmlu] = (s for s in score("seed", "knowledge", knowledge.METRICS, predictions) if s.metric == "mmlu")
    assert read_json(tmp_path / "mmlu/results.json")["groups"]["mmlu"]["acc,none"] == pytest.approx(mmlu.value)


def test_local_prompts_are_worded_as_the_hubs(measured: tuple[list[Prediction], Path], tmp_path: Path) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import apply_template

    theirs = Path(lm_eval.tasks.__file__).parent
    question = jsonl(FILES["arc_easy"][0])[0]["query"].removeprefix("Question: ")
    wanted = apply_template(load_yaml(theirs / "arc/arc_easy.yaml")["doc_to_text"], {"question": question})
    assert samples(measured[1], "arc_easy")[0]["arguments"][0][0] == wanted
    mmlu = load_yaml(theirs / "mmlu/default/mmlu_abstract_algebra.yaml")
    row = jsonl(FILES["mmlu"][0])[0]
    assert row["subject"] == "abstract_algebra"
    [first, _] = (measured[1] / "mmlu/samples_mmlu_abstract_algebra_local.jsonl").read_text().splitlines()
    assert json.loads(first)["arguments"][1] == [mmlu["description"] + apply_template(mmlu["doc_to_text"], row), " B"]
    truthful = samples(measured[1], "truthfulqa_mc2")[0]
    row = jsonl(FILES["truthfulqa_mc2"][0])[0]
    assert truthful["arguments"][0][0].endswith(f"Barcelona, Spain.\n\nQ: {row['question']}\nA:")
    assert [reply for _, reply in truthful["arguments"]][: len(row["correct"])] == [f" {c}" for c in row["correct"]]
    assert sum(truthful["doc"]["mc2_targets"]["labels"]) == len(row["correct"])
    assert len(truthful["arguments"]) == len(row["correct"]) + len(row["choices"]) - 1


def test_a_hub_out_of_reach_is_said_before_anything_runs() -> None:
    with pytest.raises(BenchmarkError, match=r"cannot load the task winogrande .* source=local"):
        Knowledge(tasks=("winogrande",), source="hub").examples()
