"""A recipe's train section → a trainer, ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.errors import ModelError, RecipeError
from sdft.models import ModelConfig, load_model, native_bf16, pick_device
from sdft.recipe import LoraConfig, TrainConfig
from sdft.training.rows import Rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sdft.training._trainer import SupervisedTrainer


def refuse(model: ModelConfig, config: TrainConfig) -> None:
    """Raise for settings that cannot work, before anything is loaded."""
    if model.adapter and config.lora:
        raise RecipeError(
            f"model.adapter ({model.adapter}) and train.lora: the new adapter would not work without the old one; "
            "merge the old one into its model first, or train all weights with train.lora=null"
        )
    if config.report_to:
        from transformers.integrations.integration_utils import get_available_reporting_integrations

        there = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
        if missing := [name for name in config.report_to if name not in there]:
            raise RecipeError(
                f"train.report_to: {', '.join(missing)} cannot be used here; install it, or take one of: "
                f"{', '.join(there) or 'none is installed'}"
            )


def open_trainer(
    rows: Rows,
    model: ModelConfig,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
    spent: dict[str, Any],
    name: str,
) -> SupervisedTrainer:
    """A trainer over `rows`, with its model loaded; `folder` is for checkpoints, `spent` from the last of them.

    `name` is what trackers call the training.

    Raises ModelError where the model cannot be loaded or has no such modules as LoRA is asked for.
    """
    from transformers import set_seed
    from trl.trainer.sft_config import SFTConfig

    from sdft.training._trainer import SupervisedTrainer

    device = pick_device(model.device)
    bf16 = native_bf16(device) if config.bf16 is None else config.bf16
    seed %= 2**32  # what numpy takes
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        packing=config.packing,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=bf16,
        logging_steps=config.logging_steps,
        save_steps=config.save_steps,
        report_to=list(config.report_to) or "none",
        run_name=name,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,  # all of an adapter's weights are used in every step
        dataloader_pin_memory=device.type == "cuda",
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        log_level="error",
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process trains on one device; TRL refuses DataParallel
    set_seed(seed)  # the adapter's first weights are drawn before the Trainer seeds anything
    # Frozen weights stand in the dtype they are computed in; weights that are trained stay in float32.
    loaded = load_model(model, "bfloat16" if bf16 and config.lora else "float32")
    if config.lora is None:
        loaded.requires_grad_(True)
    try:
        return SupervisedTrainer(
            seconds=spent["seconds"],
            trained_tokens=spent["trained_tokens"],
            model=loaded,
            args=args,
            train_dataset=_dataset(rows, config),
            processing_class=tokenizer,
            peft_config=_peft(config.lora, model),
        )
    except ValueError as error:
        if config.lora is None or "target" not in str(error).lower():
            raise
        modules = sorted({name.rpartition(".")[2] for name, part in loaded.named_modules() if hasattr(part, "weight")})
        raise ModelError(
            f"train.lora.target_modules: {config.lora.target_modules!r} does not fit {model.name}, whose modules are "
            f"{', '.join(modules)}; or use all-linear"
        ) from None


def _peft(lora: LoraConfig | None, model: ModelConfig) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig as PeftLoraConfig

    modules = lora.target_modules
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        revision=model.revision,
    )


def _dataset(rows: Rows, config: TrainConfig) -> Dataset:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    dataset = Dataset.from_dict({"input_ids": rows.input_ids, "labels": rows.labels})
    return pack_dataset(dataset, config.max_length, "bfd") if config.packing else dataset
