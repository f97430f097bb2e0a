"""Train: examples and choices → a PEFT adapter (or a whole model), with its loss curve.

Interrupted at any moment and called again with the same arguments, training goes on from its last checkpoint and
ends with the same weights as undisturbed, bit for bit where the device computes deterministically (a CPU does).
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.console import Console
from sdft.errors import ModelError, RunError, counted
from sdft.models import ModelConfig, load_tokenizer
from sdft.prompts import Renderer
from sdft.recipe import Method, Recipe, TrainConfig
from sdft.records import Choice, Example
from sdft.rundir import RunDir, digest, file_sha256, full_disk_told, read_json, read_jsonl, write_json
from sdft.training.checkpoints import claim
from sdft.training.ranks import leader_first, rank, world_size
from sdft.training.rows import TrainingPair, pairs_sha256, replies_to_learn, tokenize
from sdft.training.setup import open_trainer, refuse
from sdft.training.trackers import tracked, training_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from sdft.training._trainer import SupervisedTrainer

__all__ = ["TrainResult", "TrainingPair", "run_train", "train_model"]


@dataclass(frozen=True)
class TrainResult:
    """What one training came to; all but the path is written to `training.json`."""

    path: Path
    """The adapter's or model's folder."""
    method: str
    rows: int
    """Examples trained on."""
    tokens: int
    """Tokens of one pass over the data, prompts included."""
    supervised_tokens: int
    """Tokens of one pass that carry loss."""
    truncated: int
    """Rows whose reply was cut at `max_length`."""
    skipped: int
    """Examples left out."""
    steps: int
    """Optimizer steps."""
    loss: float | None
    """Last logged training loss."""
    data_sha256: str
    """Of the data file, or of the pairs where they came from none."""
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    """Of the device where it has its own memory, else of the process."""


def run_train(recipe: Recipe, run: RunDir, method: Method, console: Console) -> Sequence[str]:
    """Train one method on the run's data into `train/<method>`; returns notes for the manifest.

    Raises DataError, ModelError, PromptError, RecipeError and RunError.
    """
    source = run / ("select/choices.jsonl" if method == "sdft" else "data/train.jsonl")
    renderer = Renderer(recipe.prompt, load_tokenizer(recipe.model))
    pairs = list(_pairs(recipe, run, method, renderer))
    result = train_model(
        pairs,
        recipe.model,
        recipe.train,
        run / "train" / method,
        seed=recipe.seed,
        console=console,
        method=method,
        data_sha256=file_sha256(source) if recipe.train.distilled_fraction == 1 or method == "sft" else None,
    )
    limit = f"train.max_length = {recipe.train.max_length}"
    notes = []
    if method == "sdft" and recipe.train.distilled_fraction < 1:
        notes.append(f"train/sdft: {recipe.train.distilled_fraction:g} of the rewrites (train.distilled_fraction)")
    if result.truncated:
        notes.append(f"train/{method}: {result.truncated} of {result.rows} replies were cut at {limit}")
    if result.skipped:
        notes.append(f"train/{method}: {counted(result.skipped, 'example')} left out, being longer than {limit}")
    return notes


def _pairs(recipe: Recipe, run: RunDir, method: Method, renderer: Renderer) -> Iterator[TrainingPair]:
    """The plain prompt of each example, with the reply that the method learns."""
    replies: dict[str, str] | None = None
    if method == "sdft":
        choices = read_jsonl(run / "select/choices.jsonl", Choice)
        replies = replies_to_learn(choices, recipe.train.distilled_fraction, recipe.seed)
    for example in read_jsonl(run / "data/train.jsonl", Example):
        if replies is not None and example.id not in replies:
            raise RunError(f"{run / 'select/choices.jsonl'}: no choice for example {example.id}; run select again")
        reply = example.reference if replies is None else replies[example.id]
        prompt = renderer.train(example)
        yield TrainingPair(example.id, prompt.text, reply, prompt.end)


def train_model(
    pairs: Sequence[TrainingPair],
    model: ModelConfig,
    config: TrainConfig,
    out: Path,
    *,
    seed: int,
    console: Console,
    method: str = "sft",
    data_sha256: str | None = None,
) -> TrainResult:
    """Fine-tune `model` on `pairs` into the folder `out`, going on from a checkpoint where one is left.

    `out` appears when it is whole. Checkpoints stand beside it until then. Called by each of several processes (see
    `training.ranks`) they train together: a step's batch is `per_device_train_batch_size` times
    `gradient_accumulation_steps` times their number. Raises DataError for over-long examples
    (`on_long: error`) or none at all, ModelError for a model that cannot be loaded or trained, RecipeError for
    settings that do not go together.
    """
    refuse(model, config)
    together = [world_size()] if world_size() > 1 else []  # another order of rows, and other checkpoints
    inputs = digest([pairs_sha256(pairs), model.model_dump(), config.model_dump(), seed, *together])
    work = out.with_name(f".{out.name}.part")
    if any(out.glob("*.safetensors")) and read_json(out / "training.json").get("inputs") == inputs:
        if rank() == 0:
            shutil.rmtree(work, ignore_errors=True)  # killed between the last two steps of an earlier call
        return _read_result(out)
    tokenizer = load_tokenizer(model)
    rows = tokenize(pairs, tokenizer, config.max_length, config.on_long)
    if rows.truncated or rows.skipped:
        left_out = f"{counted(rows.skipped, 'example')} left out"
        console.say(f"train {method}: {counted(rows.truncated, 'reply')} cut at train.max_length, {left_out}")
    with leader_first():
        resumed = claim(work / "checkpoints", inputs)
    checkpoint, spent = resumed or (None, {"seconds": 0.0, "trained_tokens": 0})
    trainer = open_trainer(rows, model, config, tokenizer, work / "checkpoints", seed, spent, training_name(out))
    with full_disk_told(work), tracked(trainer, config.report_to, out, fresh=checkpoint is None):
        _train(trainer, checkpoint, f"train {method}", console)

    result = TrainResult(
        path=out,
        method=method,
        rows=len(rows.input_ids),
        tokens=rows.tokens,
        supervised_tokens=rows.supervised_tokens,
        truncated=rows.truncated,
        skipped=rows.skipped,
        steps=trainer.state.global_step,
        loss=next((entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry), None),
        data_sha256=data_sha256 or pairs_sha256(pairs),
        seconds=round(trainer.seconds, 1),
        tokens_per_second=round(trainer.all_trained_tokens() / trainer.seconds, 1),
        peak_memory_bytes=_peak_memory(trainer.args.device),
    )
    weights = trainer.whole_weights()
    if rank() == 0:
        with full_disk_told(work):
            _write(trainer, model, tokenizer, result, inputs, weights, work / "done")
        if out.exists():
            shutil.rmtree(out)
        (work / "done").replace(out)
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()
    return result


def _train(trainer: SupervisedTrainer, checkpoint: Path | None, label: str, console: Console) -> None:
    """Run the loop, from a checkpoint where there is one."""
    import torch

    from sdft.training._trainer import Steps

    per_epoch = math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps)
    total = math.ceil(trainer.args.num_train_epochs * per_epoch)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if done:
        console.say(f"{label}: going on from step {done} of {total}")
    with console.task(label, total=total, done=done, unit="steps") as task:
        trainer.add_callback(Steps(trainer, task))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError:
            raise ModelError(
                f"{label}: the device is out of memory; lower train.per_device_train_batch_size (and raise "
                "gradient_accumulation_steps) or train.max_length, or set train.gradient_checkpointing=true"
            ) from None
    if not all(bool(weight.isfinite().all()) for weight in trainer.model.parameters() if weight.requires_grad):
        raise ModelError(f"{label}: training diverged, the weights are not finite; lower train.learning_rate")


def _write(
    trainer: SupervisedTrainer,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    result: TrainResult,
    inputs: str,
    weights: dict[str, torch.Tensor] | None,
    folder: Path,
) -> None:
    from peft import PeftModel

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(trainer.model, PeftModel):
        # The base model is named as the recipe names it, and PEFT is kept from looking that name up on the hub.
        adapter: Any = trainer.model.peft_config["default"]
        adapter.base_model_name_or_path = model.name
        adapter.target_modules = sorted(adapter.target_modules)  # PEFT holds a set, whose order changes by process
        trainer.model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in; `sdft export` writes a card
    else:
        trainer.model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    _draw_loss(trainer.state.log_history, result.method, folder / "loss.png")
    facts = {key: value for key, value in asdict(result).items() if key != "path"}
    write_json(folder / "training.json", {**facts, "inputs": inputs})


def _read_result(out: Path) -> TrainResult:
    facts = read_json(out / "training.json")
    del facts["inputs"]
    return TrainResult(path=out, **facts)


def _draw_loss(history: list[dict[str, Any]], method: str, path: Path) -> None:
    from matplotlib.figure import Figure

    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure = Figure(figsize=(5, 3), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1.5, marker="." * (len(points) < 2))
    axes.set(xlabel="optimizer step", ylabel="loss per token (nats)", title=method)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that the device held, or the process where the device has no memory of its own."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
