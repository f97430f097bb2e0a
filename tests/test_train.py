"""Training: what carries loss, what comes out, and that an interrupted run ends like an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_models import WORDS, save_tiny_model
from sdft.console import Console
from sdft.errors import DataError, ModelError, RecipeError, RunError
from sdft.models import ModelConfig, load_model, load_tokenizer
from sdft.recipe import LoraConfig, TrainConfig, load_recipe
from sdft.records import Choice, Example, Message, Verdict
from sdft.rundir import RunDir, file_sha256, write_json, write_jsonl
from sdft.stages.train import TrainingPair, TrainResult, run_train, train_model
from sdft.training.checkpoints import claim, seal
from sdft.training.rows import IGNORED, Rows, tokenize
from sdft.training.setup import open_trainer

QUIET = Console(quiet=True)
WEIGHTS = "adapter_model.safetensors"
LORA = LoraConfig(dropout=0.1)


def some_pairs(count: int = 22, seed: int = 0) -> list[TrainingPair]:
    chance = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(2, most)))

    return [
        TrainingPair(
            id=str(index),
            prompt=f"<|im_start|>user\n{words(12)}<|im_end|>\n<|im_start|>assistant\n",
            reply=words(9),
            end="<|im_end|>",
        )
        for index in range(count)
    ]


def settings(**changes: Any) -> TrainConfig:
    small = {"epochs": 2, "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "logging_steps": 2, "save_steps": 3}
    return TrainConfig(**(small | {"lora": LORA} | changes))


def train(out: Path, model: ModelConfig, seed: int = 0, pairs: Any = None, **changes: Any) -> TrainResult:
    return train_model(
        some_pairs() if pairs is None else pairs, model, settings(**changes), out, seed=seed, console=QUIET
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(name=str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")), device="cpu")


@pytest.fixture(scope="module")
def undisturbed(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder trained without interruption."""
    return train(tmp_path_factory.mktemp("undisturbed") / "sft", model).path


# Rows


def test_loss_stands_on_the_reply_and_its_end_alone(model: ModelConfig) -> None:
    tokenizer = load_tokenizer(model)
    pairs = some_pairs()
    rows = tokenize(pairs, tokenizer, 512, "error")
    for pair, ids, labels in zip(pairs, rows.input_ids, rows.labels, strict=True):
        assert tokenizer.decode(ids) == pair.prompt + pair.reply + pair.end
        assert tokenizer.decode([label for label in labels if label != IGNORED]) == pair.reply + pair.end
        assert labels[-1] == tokenizer.eos_token_id
    assert rows.tokens == sum(map(len, rows.input_ids)) > rows.supervised_tokens
    assert rows.supervised_tokens == sum(label != IGNORED for labels in rows.labels for label in labels)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8), st.integers(8, 40))
def test_long_rows_are_cut_or_left_out_and_counted(model: ModelConfig, sizes: list[tuple[int, int]], most: int) -> None:
    tokenizer = load_tokenizer(model)
    pairs = [
        TrainingPair(str(i), " one" * prompt, " two" * reply, "<|im_end|>") for i, (prompt, reply) in enumerate(sizes)
    ]
    long = [prompt + reply + 1 > most for prompt, reply in sizes]
    hopeless = [min(prompt + reply + 1, most) <= max(prompt, 1) for prompt, reply in sizes]
    cut = [a and not b for a, b in zip(long, hopeless, strict=True)]

    def attempt(on_long: Any) -> Rows | None:
        try:
            return tokenize(pairs, tokenizer, most, on_long)
        except DataError as error:
            assert ("train.max_length" in str(error)) and (on_long != "error" or any(long) or all(hopeless))
            return None

    truncated, skipped = attempt("truncate"), attempt("skip")
    if truncated is None:
        assert all(hopeless)
    else:
        assert (truncated.truncated, truncated.skipped) == (sum(cut), sum(hopeless))
        assert all(
            len(ids) <= most and len(ids) == len(labels)
            for ids, labels in zip(truncated.input_ids, truncated.labels, strict=True)
        )
        assert all(any(label != IGNORED for label in labels[1:]) for labels in truncated.labels)
    left_out = [a or b for a, b in zip(long, hopeless, strict=True)]
    if skipped is None:
        assert all(left_out)
    else:
        assert (skipped.truncated, skipped.skipped) == (0, sum(left_out))
    if any(long):
        assert attempt("error") is None


def test_a_long_example_is_named(model: ModelConfig) -> None:
    pairs = [*some_pairs(3), TrainingPair("the-long-one", " one" * 100, " two", "<|im_end|>")]
    with pytest.raises(
        DataError, match=r"max_length = 64 tokens, 1 of 4 examples: the-long-one \(102\).*train.on_long"
    ):
        tokenize(pairs, load_tokenizer(model), 64, "error")


# The loss


def trainer_of(model: ModelConfig, folder: Path, rows: Rows, **changes: Any) -> Any:
    spent = {"seconds": 0.0, "trained_tokens": 0}
    return open_trainer(rows, model, settings(**changes), load_tokenizer(model), folder, 0, spent, "run-sft")


def summed_losses(plain: Any, rows: Rows) -> list[float]:
    """The reference: one row at a time through the plain model, with transformers' own loss, times its tokens."""
    import torch

    out = []
    with torch.no_grad():
        for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
            loss = plain(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            out.append(float(loss) * sum(label != IGNORED for label in labels[1:]))
    return out


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_that_of_transformers_with_and_without_packing(
    model: ModelConfig, tmp_path: Path, packing: bool
) -> None:
    rows = tokenize(some_pairs(12), load_tokenizer(model), 512, "error")
    wanted = sum(summed_losses(load_model(model, "float32"), rows))
    trainer = trainer_of(
        model,
        tmp_path,
        rows,
        packing=packing,
        max_length=96,
        per_device_train_batch_size=3,
        lora=LoraConfig(),
        bf16=False,
    )
    trainer.model.eval()
    sums, batches, longest = 0.0, 0, 0
    for batch in trainer.get_train_dataloader():
        assert ("attention_mask" in batch) is not packing
        longest, batches = max(longest, batch["input_ids"].shape[1]), batches + 1
        sums += trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=1).item()
    assert sums == pytest.approx(wanted, rel=1e-5)
    assert batches < 4 if packing else batches == 4
    assert (longest > 96) is packing  # several packed rows in one go, each blind to the others


def test_accumulated_gradients_are_averaged_over_tokens(model: ModelConfig, tmp_path: Path) -> None:
    import torch

    rows = tokenize(some_pairs(8), load_tokenizer(model), 512, "error")
    plain = load_model(model, "float32").requires_grad_(True)
    items = rows.supervised_tokens
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        plain(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), num_items_in_batch=items).loss.backward()
    trainer = trainer_of(model, tmp_path, rows, lora=None, gradient_accumulation_steps=4)
    batches, counted = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 4, torch.device("cpu"))
    trainer.create_optimizer()
    for batch in batches:
        trainer.training_step(trainer.model, batch, counted)
    assert int(counted) == items
    wanted, got = dict(plain.named_parameters()), dict(trainer.model.named_parameters())
    assert all(torch.allclose(got[name].grad, wanted[name].grad, rtol=1e-4, atol=1e-6) for name in wanted)


# What comes out


def test_an_adapter_folder_is_whole_and_works(model: ModelConfig, undisturbed: Path) -> None:
    from peft import PeftModel

    config = json.loads((undisturbed / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.name
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.1)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert (undisturbed / "chat_template.jinja").read_text() == load_tokenizer(model).chat_template
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(undisturbed.parent.glob(".*"))

    history = json.loads((undisturbed / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert history[-1]["loss"] < history[0]["loss"]
    facts = json.loads((undisturbed / "training.json").read_text())
    rows = tokenize(some_pairs(), load_tokenizer(model), 1024, "error")
    assert (facts["rows"], facts["tokens"], facts["supervised_tokens"]) == (22, rows.tokens, rows.supervised_tokens)
    assert (facts["steps"], facts["truncated"], facts["skipped"]) == (12, 0, 0)
    assert facts["tokens_per_second"] == pytest.approx(2 * rows.tokens / facts["seconds"], rel=0.2)
    assert facts["peak_memory_bytes"] > 1e6

    tuned = PeftModel.from_pretrained(load_model(model, "float32"), undisturbed)
    assert sum(summed_losses(tuned, rows)) < 0.95 * sum(summed_losses(load_model(model, "float32"), rows))


def test_all_linear_reaches_every_projection(model: ModelConfig, tmp_path: Path) -> None:
    out = train(tmp_path / "a", model, epochs=1, lora=LoraConfig(target_modules="all-linear", r=2)).path
    targets = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    wanted = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rpartition(".")[2] for name in targets} == wanted


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointing"])
def test_full_fine_tuning_writes_a_model(model: ModelConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch

    result = train(tmp_path / "full", model, lora=None, learning_rate=1e-3, **changes)
    tuned = load_model(ModelConfig(name=str(result.path), device="cpu"), "float32").state_dict()
    seed = load_model(model, "float32").state_dict()
    assert tuned.keys() == seed.keys()
    assert not any(torch.equal(tuned[name], seed[name]) for name in seed)
    assert not (result.path / "adapter_config.json").exists()


def test_packing_and_bf16_train(model: ModelConfig, tmp_path: Path) -> None:
    result = train(tmp_path / "p", model, packing=True, max_length=64, bf16=True)
    losses = [entry["loss"] for entry in json.loads((result.path / "trainer_state.json").read_text())["log_history"]]
    assert losses[-1] < losses[0]
    assert result.rows == 22


def test_the_seed_decides(model: ModelConfig, undisturbed: Path, tmp_path: Path) -> None:
    wanted = (undisturbed / WEIGHTS).read_bytes()
    assert (train(tmp_path / "same", model).path / WEIGHTS).read_bytes() == wanted
    assert (train(tmp_path / "other", model, seed=1).path / WEIGHTS).read_bytes() != wanted


# What is refused


def test_modules_that_are_not_there_are_named(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"target_modules.*c_attn.*q_proj.*all-linear"):
        train(tmp_path / "a", model, lora=LoraConfig(target_modules=("c_attn",)))


def test_an_adapter_on_top_of_an_adapter_is_refused(model: ModelConfig, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model.adapter .* train.lora"):
        train(tmp_path / "a", model.model_copy(update={"adapter": str(undisturbed)}))


def test_a_tracker_that_is_not_installed_is_named(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.report_to: nosuchtracker"):
        train(tmp_path / "a", model, report_to=("nosuchtracker",))


def test_diverged_weights_are_not_written(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"diverged.*train.learning_rate"):
        train(tmp_path / "a", model, learning_rate=1e38, max_grad_norm=0.0, epochs=0.2)
    assert not (tmp_path / "a").exists()


def test_an_adapter_for_another_model_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    other = ModelConfig(name=str(save_tiny_model(tmp_path / "other", hidden_size=32)), adapter=str(undisturbed))
    with pytest.raises(ModelError, match=r"does not fit"):
        load_model(other)


# Interruptions


def same_result(out: Path, undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in sorted(names - {"training.json"}):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    timed = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    facts, wanted = (json.loads((path / "training.json").read_text()) for path in (out, undisturbed))
    assert {k: v for k, v in facts.items() if k not in timed} == {k: v for k, v in wanted.items() if k not in timed}
    assert not list(out.parent.glob(".*"))


def killed_at(moment: str, count: int) -> None:
    """Have this process kill itself at the count-th time that something is about to be done."""
    import shutil

    import sdft.stages.train as stage
    import sdft.training._trainer as loop

    place, name = {
        "seal": (loop, "seal"),
        "draw": (stage, "_draw_loss"),
        "clean": (shutil, "rmtree"),
        "step": (loop.SupervisedTrainer, "training_step"),
    }[moment]
    original, left = getattr(place, name), [count]

    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(place, name, dying)


def in_child(model: ModelConfig, out: Path, moment: tuple[str, int] | None, changes: dict[str, Any]) -> None:
    if moment:
        killed_at(*moment)
    train(out, model, **changes)


def children() -> Any:
    """Processes that start with the heavy imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sdft.training._trainer", "datasets", "peft", "hypothesis", "matplotlib.figure", "transformers.models.llama"]
    )
    return context


def run_and_kill(
    model: ModelConfig, out: Path, moments: Iterable[tuple[str, int] | float | None], **changes: Any
) -> list[int | None]:
    """Call the same training again and again; a number kills it after that many seconds. Returns the exit codes."""
    codes = []
    for moment in moments:
        named = moment if isinstance(moment, tuple) else None
        child = children().Process(target=in_child, args=(model, out, named, changes))
        child.start()
        if isinstance(moment, float):
            time.sleep(moment)
            child.kill()
        child.join()
        codes.append(child.exitcode)
    return codes


def test_killed_at_every_kind_of_moment_it_ends_as_undisturbed(
    model: ModelConfig, undisturbed: Path, tmp_path: Path
) -> None:
    moments = [("step", 3), ("seal", 1), ("step", 8), ("seal", 2), ("draw", 1), ("clean", 2)]
    codes = run_and_kill(model, tmp_path / "sft", [*moments, None])
    assert codes == [-signal.SIGKILL] * len(moments) + [0]
    same_result(tmp_path / "sft", undisturbed)


def test_killed_at_random_times_it_ends_as_undisturbed(model: ModelConfig, undisturbed: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    run_and_kill(model, tmp_path / "sft", [("draw", 1)])
    whole, chance = time.monotonic() - began, random.Random(0)
    run_and_kill(model, tmp_path / "other" / "sft", [chance.uniform(0.3, 0.9) * whole for _ in range(3)])
    assert run_and_kill(model, tmp_path / "other" / "sft", [None]) == [0]
    same_result(tmp_path / "other" / "sft", undisturbed)


def test_killed_full_fine_tuning_on_packed_rows_ends_as_undisturbed(model: ModelConfig, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"lora": None, "learning_rate": 1e-3, "packing": True, "max_length": 32, "epochs": 1}
    calm = train(tmp_path / "calm" / "sft", model, **changes).path
    codes = run_and_kill(model, tmp_path / "run" / "sft", [("step", 5), ("seal", 2), None], **changes)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    same_result(tmp_path / "run" / "sft", calm)


def test_a_finished_training_is_not_done_again(model: ModelConfig, tmp_path: Path) -> None:
    first = train(tmp_path / "a", model, epochs=1)
    stamp = (first.path / WEIGHTS).stat().st_mtime_ns
    assert train(tmp_path / "a", model, epochs=1) == first
    assert (first.path / WEIGHTS).stat().st_mtime_ns == stamp
    other = train(tmp_path / "a", model, epochs=1, seed=1)
    assert other.path == first.path and (other.path / WEIGHTS).stat().st_mtime_ns != stamp


def test_a_torn_checkpoint_is_dropped_and_the_one_before_is_taken(tmp_path: Path) -> None:
    assert claim(tmp_path, "a") is None
    for step in (3, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step})
    assert claim(tmp_path, "a") is None and not list(tmp_path.glob("checkpoint-*"))
    for step in (3, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    seal(tmp_path / "checkpoint-9", {"seconds": 1.5})
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-9"]
    (tmp_path / "checkpoint-12").mkdir()
    assert claim(tmp_path, "a") == (tmp_path / "checkpoint-9", {"seconds": 1.5})
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-9"]
    assert claim(tmp_path, "b") is None, "a checkpoint of other inputs is never gone on from"


# The stage


def a_run(model: ModelConfig, folder: Path) -> tuple[Any, RunDir]:
    recipe = load_recipe(
        {
            "model": model.model_dump(),
            "data": {"dataset": "unused"},
            "train": settings(epochs=1).model_dump(),
        }
    )
    examples = [
        Example(id=f"e{i}", messages=(Message(role="user", content=f"sum {WORDS[i]}"),), reference=f"answer {WORDS[i]}")
        for i in range(8)
    ]
    choices = [
        Choice(
            example_id=example.id,
            response=f"the answer is {example.reference}",
            source="rewrite",
            verdict=Verdict(ok=True, reason="ok"),
            candidate=0,
            original=example.reference,
        )
        for example in reversed(examples)
    ]
    run = RunDir(folder)
    write_jsonl(run / "data/train.jsonl", examples)
    write_jsonl(run / "select/choices.jsonl", choices)
    return recipe, run


def test_each_method_trains_on_its_own_replies(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdft.stages.train as stage

    recipe, run = a_run(model, tmp_path / "run")
    seen: dict[str, list[TrainingPair]] = {}

    def watch(pairs: list[TrainingPair], *args: Any, method: str, **kwargs: Any) -> TrainResult:
        seen[method] = pairs
        return train_model(pairs, *args, method=method, **kwargs)

    monkeypatch.setattr(stage, "train_model", watch)
    assert run_train(recipe, run, "sft", QUIET) == run_train(recipe, run, "sdft", QUIET) == []
    assert [(pair.id, pair.prompt, pair.end) for pair in seen["sft"]] == [
        (f"e{i}", f"<|im_start|>user\nsum {WORDS[i]}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
        for i in range(8)
    ]
    assert [pair.prompt for pair in seen["sdft"]] == [pair.prompt for pair in seen["sft"]]
    assert [pair.reply for pair in seen["sft"]] == [f"answer {WORDS[i]}" for i in range(8)]
    assert [pair.reply for pair in seen["sdft"]] == [f"the answer is answer {WORDS[i]}" for i in range(8)]
    for method, source in (("sft", "data/train.jsonl"), ("sdft", "select/choices.jsonl")):
        facts = json.loads((run / "train" / method / "training.json").read_text())
        assert (facts["method"], facts["data_sha256"]) == (method, file_sha256(run / source))


def test_cut_replies_are_noted(model: ModelConfig, tmp_path: Path) -> None:
    recipe, run = a_run(model, tmp_path / "run")
    short = recipe.model_copy(update={"train": settings(epochs=1, max_length=20)})
    notes = run_train(short, run, "sft", QUIET)
    facts = json.loads((run / "train/sft/training.json").read_text())
    assert facts["truncated"] + facts["skipped"] > 0
    assert all("train.max_length = 20" in note for note in notes) and notes


def test_an_example_without_a_choice_is_an_error(model: ModelConfig, tmp_path: Path) -> None:
    recipe, run = a_run(model, tmp_path / "run")
    write_jsonl(run / "select/choices.jsonl", [])
    with pytest.raises(RunError, match=r"choices.jsonl: no choice for example e0"):
        run_train(recipe, run, "sdft", QUIET)
