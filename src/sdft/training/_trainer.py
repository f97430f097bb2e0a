"""TRL's SFTTrainer with a cheaper loss off the GPU, whole checkpoints, and a log that a resumed run repeats exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from sdft.console import Task
from sdft.training.checkpoints import seal
from sdft.training.rows import IGNORED

KEPT_IN_LOG = ("loss", "grad_norm", "learning_rate")


class SupervisedTrainer(SFTTrainer):
    """Computes logits only where a label is.

    TRL's own head does so on CUDA and XPU, in Triton, and is used there. Elsewhere it scores every position, prompt
    and padding too, twice: over a vocabulary of 49,152 that is most of the work of a small model.
    """

    model: Any

    def __init__(self, *, seconds: float, trained_tokens: int, **kwargs: Any) -> None:
        """`seconds` and `trained_tokens` are what was spent before a resumed checkpoint; the rest is SFTTrainer's."""
        super().__init__(**kwargs)
        self.trained_tokens = trained_tokens
        self.step_tokens = 0
        self._started = time.monotonic() - seconds
        self._keep: torch.Tensor | None = None
        self._gathers = self.args.device.type not in ("cuda", "xpu") and not self.aux_loss_enabled
        if self._gathers:
            self.model.get_output_embeddings().register_forward_pre_hook(self._gather)
        self.remove_callback(PrinterCallback)

    @property
    def seconds(self) -> float:
        """Time spent on training, that before a resumed checkpoint included."""
        return time.monotonic() - self._started

    def all_trained_tokens(self) -> int:
        """Of all processes together."""
        mine = torch.tensor(self.trained_tokens, device=self.args.device)
        return int(self.accelerator.reduce(mine, "sum"))

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights, gathered where FSDP or DeepSpeed spread them over processes; else None. All must call it."""
        spread = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.accelerator.get_state_dict(self.model_wrapped) if spread else None

    def _gather(self, module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """(batch, length, hidden) → (supervised, hidden), for the output layer."""
        return args if self._keep is None else (args[0][:, :-1][self._keep],)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood over the supervised tokens of the whole accumulated batch."""
        if not self._gathers:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        labels = inputs.pop("labels")[:, 1:]
        self._keep = labels != IGNORED
        try:
            logits = model(**inputs, use_cache=False).logits
            targets = labels[self._keep]
        finally:
            self._keep = None
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            return total / targets.numel()
        return total * self.accelerator.num_processes / num_items_in_batch  # gradients are averaged over processes

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of a step as its batches are drawn."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.step_tokens = sum(
            int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
            for batch in batches
        )
        return batches, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what does not depend on the clock or on where a run was interrupted."""
        kept = {key: logs[key] for key in KEPT_IN_LOG if key in logs}
        if "loss" in kept:
            Trainer.log(self, kept)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # TRL's own would also write a model card
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        seal(checkpoint, {"seconds": self.seconds, "trained_tokens": self.trained_tokens})


class Steps(TrainerCallback):
    """Counts steps and tokens on a console's task, and logs the loss wherever a checkpoint is taken.

    The Trainer forgets losses that are not logged yet when it resumes, so a checkpoint must stand on a log line.
    """

    def __init__(self, trainer: SupervisedTrainer, task: Task) -> None:
        self.trainer, self.task = trainer, task

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """One optimizer step is done."""
        self.trainer.trained_tokens += self.trainer.step_tokens
        self.task.advance(1, self.trainer.step_tokens)
        control.should_log = control.should_log or control.should_save
        return control
