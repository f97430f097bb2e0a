"""Training speed: TRL's SFTTrainer with its defaults, the same without what slows it on a CPU, and ours.

    python bench/train.py [--rows 12] [--json FILE]

SmolLM2-135M-Instruct, LoRA r 8 on q_proj and v_proj, GSM8K rows in chat style, batch 2 with 2 accumulated, one epoch:
the same rows in the same order from the same first weights. Each runs in a process of its own, one after the other;
loading is not timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sdft.console import Console
from sdft.data import load_examples
from sdft.models import ModelConfig, load_model, load_tokenizer, pick_device
from sdft.prompts import PromptConfig, Renderer
from sdft.recipe import TrainConfig
from sdft.stages.train import TrainingPair, train_model
from sdft.training.rows import Rows, tokenize

MODEL = ModelConfig(name="HuggingFaceTB/SmolLM2-135M-Instruct")
CONFIG = TrainConfig(epochs=1, gradient_accumulation_steps=2, logging_steps=1)
SEED = 0
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl": ("TRL, its defaults", {}),
    "trl-float32": ("TRL, float32, no recompute", {"bf16": False, "gradient_checkpointing": False}),
    "ours": ("ours", {}),
}


def gsm8k(count: int) -> list[TrainingPair]:
    """GSM8K questions with their official answers, in the model's own chat template."""
    renderer = Renderer(PromptConfig(), load_tokenizer(MODEL))
    pairs = []
    for example in load_examples("gsm8k_train", limit=count):
        prompt = renderer.train(example)
        pairs.append(TrainingPair(example.id, prompt.text, example.reference, prompt.end))
    return pairs


def with_trl(rows: Rows, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """TRL's own trainer; what the recipe sets is set, everything else is TRL's default."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=CONFIG.epochs,
        learning_rate=CONFIG.learning_rate,
        lr_scheduler_type=CONFIG.lr_scheduler_type,
        per_device_train_batch_size=CONFIG.per_device_train_batch_size,
        gradient_accumulation_steps=CONFIG.gradient_accumulation_steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=pick_device().type == "cpu",  # its default of bf16 refuses to start on a CPU otherwise
        disable_tqdm=True,
        seed=SEED,
        data_seed=SEED,
        **changes,
    )
    set_seed(SEED)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    trainer = SFTTrainer(
        model=load_model(MODEL, "float32"),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": rows.input_ids, "labels": rows.labels}),
        processing_class=load_tokenizer(MODEL),
        peft_config=lora,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def with_ours(pairs: list[TrainingPair], folder: Path) -> dict[str, Any]:
    """The train stage's own function, its checkpoint and progress included."""
    result = train_model(pairs, MODEL, CONFIG, folder / "sft", seed=SEED, console=Console(quiet=True))
    history = json.loads((result.path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    seconds = result.tokens / result.tokens_per_second
    return {"seconds": seconds, "losses": [entry["loss"] for entry in history if "loss" in entry]}


def worker(variant: str, count: int, out: Path) -> None:
    """Run one variant and write what was measured."""
    pairs = gsm8k(count)
    rows = tokenize(pairs, load_tokenizer(MODEL), CONFIG.max_length, "error")
    with tempfile.TemporaryDirectory() as folder:
        if variant == "ours":
            measured = with_ours(pairs, Path(folder))
        else:
            measured = with_trl(rows, VARIANTS[variant][1], Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    facts = {"tokens": rows.tokens, "supervised": rows.supervised_tokens, "peak_bytes": peak}
    out.write_text(json.dumps(measured | facts), encoding="utf-8")


def floor(tokens: int, supervised: int) -> dict[str, float]:
    """Seconds that the products alone take: forward, and backward to the inputs, at this machine's float32 speed."""
    import torch

    model = load_model(MODEL, "float32")
    head = model.get_output_embeddings().weight.numel()
    body = sum(weight.numel() for weight in model.parameters()) - head
    a, b = torch.randn(1024, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    gflops = 2 * 1024 * 1536 * 1536 / best / 1e9
    flops = 4 * (body * tokens + head * supervised)
    return {"tflop": flops / 1e12, "gflops": gflops, "seconds": flops / gflops / 1e9}


def main() -> None:
    """Measure, print, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.rows, args.json)

    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant, (name, _) in VARIANTS.items():
            out = Path(folder) / f"{variant}.json"
            command = [sys.executable, __file__, "--worker", variant, "--rows", str(args.rows), "--json", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            measured[variant] = {"name": name, **json.loads(out.read_text(encoding="utf-8"))}
    own = measured["ours"]
    rows = []
    for row in measured.values():
        gaps = [abs(a - b) for a, b in zip(row["losses"], own["losses"], strict=True)]
        row |= {"rate": row["tokens"] / row["seconds"], "ours_is_faster_by": row["seconds"] / own["seconds"]}
        row |= {"loss_gap_mean": sum(gaps) / len(gaps), "loss_gap_max": max(gaps)}
        rows.append(
            [
                row["name"],
                f"{row['rate']:.0f}",
                f"{row['ours_is_faster_by']:.1f}",
                f"{row['peak_bytes'] / 1e9:.1f}",
                f"{row['losses'][-1]:.4f}",
                f"{row['loss_gap_mean']:.1e}",
                f"{row['loss_gap_max']:.1e}",
            ]
        )
    columns = ["", "tokens/s", "ours ×", "peak GB", "last loss", "mean gap", "max gap"]
    Console().table(f"Training on {own['tokens']} tokens, {own['supervised']} with loss", columns, rows)
    least = floor(own["tokens"], own["supervised"])
    print("ours ×: how much faster ours is; gap: difference of the loss, step by step, from ours")
    print(f"floor: {least['tflop']:.2f} TFLOP at {least['gflops']:.0f} GFLOP/s (float32) = {least['seconds']:.0f} s")
    print(f"ours: {own['seconds']:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({"rows": list(measured.values()), "floor": least}, indent=2), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
