"""Warnings that save a day, and thinking models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers_models import save_tiny_model, tiny_tokenizer
from helpers_pipeline import example, scripted_recipe
from sdft import cautions, thinking
from sdft.console import Console
from sdft.errors import RecipeError
from sdft.models import ModelConfig
from sdft.order import plan
from sdft.pipeline import run
from sdft.prompts import PromptConfig, Renderer
from sdft.recipe import load_recipe
from sdft.records import Prediction, Rewrite
from sdft.rundir import read_json, read_jsonl


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", False), ("meta-llama/Llama-2-7b-hf", True), ("meta-llama/Llama-3.2-1B", True),
        ("meta-llama/Llama-3.2-1B-Instruct", False), ("Qwen/Qwen2.5-1.5B", True), ("Qwen/Qwen2.5-1.5B-Instruct", False),
        ("Qwen/Qwen3-8B", False), ("Qwen/Qwen3-8B-Base", True), ("google/gemma-2-2b-it", False),
        ("google/gemma-2-2b", True), ("google/gemma-3-1b-pt", True), ("HuggingFaceTB/SmolLM2-135M", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", False), ("HuggingFaceTB/SmolLM3-3B", False), ("gpt2", True),
        ("mistralai/Mistral-7B-v0.3", True), ("mistralai/Mistral-7B-Instruct-v0.3", False), ("me/my-model", False),
        ("openai/gpt-oss-20b", False), ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", False),
    ],
)  # fmt: skip
def test_base_models_are_told_by_their_names(name: str, base: bool) -> None:
    assert bool(list(cautions.base_model(ModelConfig(name=name)))) == base


def test_a_folder_without_a_chat_template_looks_like_a_base_model(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    assert not list(cautions.base_model(ModelConfig(name=str(folder))))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    [line] = cautions.base_model(ModelConfig(name=str(folder)))
    assert "no chat template" in line


def test_small_tests_are_told_by_the_gain_that_is_hoped_for() -> None:
    tree: dict[str, Any] = {"model": "m", "data": {"dataset": "d"}}
    tree["evaluate"] = {"benchmarks": [{"name": "gsm8k", "limit": 50}, {"name": "drift", "limit": 5}]}
    [line] = cautions.small_tests(load_recipe(tree))
    assert "'gsm8k' asks 50 rows: a share is known to ±13 points" in line
    assert "ask 93 or more" in line
    assert not list(cautions.small_tests(load_recipe(tree, ["evaluate.expected_gain=0.2"])))
    assert not list(cautions.small_tests(load_recipe(tree, ["methods=[]"]))), "nothing is compared"
    low, high = cautions.wilson(46.5, 93)
    assert high - low < 0.2


def test_the_expected_gain_is_no_input_of_any_stage() -> None:
    tree = {"model": "m", "data": {"dataset": "d"}, "evaluate": {"benchmarks": ["drift"]}}
    stages = [plan(load_recipe(tree, [f"evaluate.expected_gain={gain}"])) for gain in (0.1, 0.3)]
    assert [stage.inputs for stage in stages[0]] == [stage.inputs for stage in stages[1]]
    assert all("thinking" not in stage.inputs.get("prompt", {}) for stage in stages[0])
    on = plan(load_recipe(tree, ["prompt.thinking=never"]))
    assert all(stage.inputs["prompt"]["thinking"] == "never" for stage in on if stage.name not in ("data",))


def test_rows_in_train_and_test_are_told_whatever_their_spaces(tmp_path: Path, monkeypatch: Any) -> None:
    from sdft.benchmarks.drift import Drift

    asked = [example(3), example(4).model_copy(update={"reference": "other"})]
    monkeypatch.setattr(Drift, "examples", lambda self: asked)
    recipe = load_recipe({"model": "m", "data": {"dataset": "d"}, "evaluate": {"benchmarks": ["drift"]}})
    spaced = example(4).messages[0].model_copy(update={"content": " 4  PLUS 4 is\n"})
    train = [example(1), example(4).model_copy(update={"messages": (spaced,)})]
    counts = cautions.overlaps(recipe, train)
    assert counts == {"drift": 1}
    assert "in 1 of its rows" in cautions.overlap_lines(counts)[0]
    assert cautions.overlaps(recipe, [example(1)]) == {}


def test_a_run_warns_of_shared_rows_and_notes_them(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from sdft.benchmarks.drift import Drift
    from sdft.data import load_examples

    tree = scripted_recipe(tmp_path)
    monkeypatch.setattr(Drift, "examples", lambda self: load_examples(tree["data"]["dataset"], limit=3))
    monkeypatch.setattr(Drift, "groups", lambda self, example: "sums")
    tree |= {"model": str(save_tiny_model(tmp_path / "tiny")), "methods": ["sft"], "analyze": {"similarity": False}}
    path = run(tree, console=Console(quiet=True)).path
    said = "benchmark 'drift' asks what the training data holds, in 3 of its rows"
    assert said in capsys.readouterr().err
    assert any(said in note for note in read_json(path / "manifest.json")["notes"])


def test_hardly_any_rewrite_is_said_with_the_reasons_and_what_mends_them(tmp_path: Path, capsys: Any) -> None:
    assert cautions.few_rewrites(100, 20, {}) is None
    assert cautions.few_rewrites(9, 0, {"leak": 9}) is None
    line = cautions.few_rewrites(100, 3, {"leak": 7, "truncated": 90}) or ""
    assert "only 3 of 100" in line
    assert "truncated 90, leak 7" in line
    assert "raise distill.max_new_tokens; the model talks about the prompt" in line
    path = run(scripted_recipe(tmp_path), console=Console(quiet=True)).path
    assert "warning: select: only 0 of 12 rows have a rewrite" in capsys.readouterr().err
    assert any("only 0 of 12" in note for note in read_json(path / "manifest.json")["notes"])


# Thinking


@pytest.mark.parametrize(
    ("text", "opened", "thought", "reply"),
    [
        ("<think>\nHm.\n</think>\n\nSeven.", False, "Hm.", "Seven."),
        ("\n<think></think>Seven.", False, "", "Seven."),
        ("Hm.</think>\nSeven.", True, "Hm.", "Seven."),
        ("Hm.\n</think>\nSeven.", False, "Hm.", "Seven."),
        ("<think>Hm, and", False, "Hm, and", ""),
        ("Hm, and", True, "Hm, and", ""),
        ("Seven.", False, "", "Seven."),
        ("In HTML, <think> and </think> are no tags.", False, "", "In HTML, <think> and </think> are no tags."),
        (" Seven. ", False, "", " Seven. "),
    ],
)
def test_thoughts_are_parted_from_replies(text: str, opened: bool, thought: str, reply: str) -> None:
    assert thinking.split(text, opened) == (thought, reply)


def test_thoughts_stay_out_of_rewrites_and_predictions_and_are_counted(tmp_path: Path) -> None:
    said = "<think>Let me see now.</think>\n\nIt is 7."
    engine = {"name": "scripted", "replies": {"3 plus 4": said}, "default": "No."}
    tree = scripted_recipe(tmp_path, distill={"engine": engine})
    tree["evaluate"]["engine"] = {"name": "scripted", "default": said}
    path = run(tree, console=Console(quiet=True)).path
    texts = {rewrite.text: rewrite.thought for rewrite in read_jsonl(path / "distill/rewrites.jsonl", Rewrite)}
    assert texts == {"It is 7.": "Let me see now.", "No.": ""}
    predictions = list(read_jsonl(path / "eval/seed/drift/predictions.jsonl", Prediction))
    assert {(p.predict, p.thought) for p in predictions} == {("It is 7.", "Let me see now.")}
    notes = read_json(path / "manifest.json")["notes"]
    assert any(note.startswith("distill: 1 of 12 replies began with a thought (<think>), of 4 words") for note in notes)
    assert any("5 of 5 replies began with a thought" in note for note in notes)
    tree["prompt"]["thinking"] = "keep"
    path = run({**tree, "name": "kept"}, console=Console(quiet=True)).path
    assert said in {rewrite.text for rewrite in read_jsonl(path / "distill/rewrites.jsonl", Rewrite)}


def test_a_server_that_takes_turns_cannot_be_asked_to_think() -> None:
    engine = {"name": "openai", "base_url": "http://localhost:1/v1"}
    tree = {"model": "m", "data": {"dataset": "d"}, "distill": {"engine": engine}, "methods": []}
    with pytest.raises(RecipeError, match=r"prompt.thinking: a server that takes turns"):
        load_recipe(tree, ["prompt.thinking=never"])
    load_recipe(tree, ["prompt.thinking=keep"])


THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
    "{% endif %}"
)


def test_the_chat_template_is_asked_to_think_or_not() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE

    def prompts(setting: Any) -> tuple[str, str]:
        renderer = Renderer(PromptConfig(thinking=setting), tokenizer)
        return renderer.infer(example(1)).text, renderer.train(example(1)).text

    assert prompts("never")[0].endswith("assistant\n<think>\n\n</think>\n\n")
    for setting in ("auto", "always"):
        asked, trained = prompts(setting)
        assert asked.endswith("assistant\n<think>\n")
        assert thinking.opens(asked)
        assert trained.endswith("assistant\n<think>\n\n</think>\n\n"), "the reply is no thought"
    assert prompts("keep")[1].endswith("<think>\n")


def test_test_rows_that_no_reply_can_pass_are_told(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    rows = [{"prompt": "Q?", "completion": answer} for answer in ("12", "a dozen", "13")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {"name": "dataset", "data": str(file), "check": "number"}
    tree: dict[str, Any] = {"model": "m", "methods": [], "evaluate": {"benchmarks": [own]}}
    [line] = cautions.refused_references(load_recipe(tree))
    assert "refuses the reference itself in 1 of 3 rows, such as 'a dozen' (no_number)" in line
    own["check"] = "answer"
    assert not list(cautions.refused_references(load_recipe(tree)))
