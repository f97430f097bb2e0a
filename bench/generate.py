"""Distilling speed: the reference's path, padded batches, and ours, on the same GSM8K distillation prompts.

    python bench/generate.py [--rows 64] [--json FILE]

Greedy, at most 200 new tokens, SmolLM2-135M-Instruct, one process, one after the other. Ours takes all rows;
`generate` takes the first quarter one by one and the first half in padded batches in the dtype that ours has, and
fewer in the other. Ours is compared with the faster dtype of each, and its replies with those of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sdft.data import load_examples
from sdft.engines import Request, Sampling, TransformersSettings
from sdft.engines._packing import PackedLinear, can_pack
from sdft.engines.transformers import TransformersEngine
from sdft.models import ModelConfig, load_model, load_tokenizer
from sdft.prompts import PromptConfig
from sdft.rendering import open_prompter

MODEL = ModelConfig(name="HuggingFaceTB/SmolLM2-135M-Instruct")
NEW = 200


def prompts(count: int, model: ModelConfig = MODEL, dataset: str = "gsm8k_train") -> list[Request]:
    """GSM8K rows under the maths distillation prompt, in the model's own chat template."""
    config = PromptConfig(distill="math_distill", reply_prefix="Great! Let's think step by step. ")
    prompter = open_prompter(config, TransformersSettings(), model)
    sampling = Sampling(max_new_tokens=NEW)
    shared = prompter.shared(prompter.renderer.distill)
    out = []
    for example in load_examples(dataset, limit=count):
        prompt = prompter.distill(example, sampling)
        assert prompt is not None
        out.append(Request(id=example.id, prompt=prompt.text, stop=prompt.stop, prefix=shared))
    return out


def timed(work: Callable[[], dict[str, list[int]]]) -> tuple[dict[str, list[int]], float]:
    """Replies as token ids, and seconds."""
    start = time.perf_counter()
    replies = work()
    return replies, time.perf_counter() - start


def with_generate(model: Any, tokenizer: Any, asked: list[Request], batch: int) -> dict[str, list[int]]:
    """`generate` over batches padded on the left, sorted by length."""
    by_length = sorted(asked, key=lambda request: len(tokenizer(request.prompt)["input_ids"]))
    replies: dict[str, list[int]] = {}
    for start in range(0, len(asked), batch):
        part = by_length[start : start + batch]
        inputs = tokenizer(
            [r.prompt for r in part], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id)
        for request, row in zip(part, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            replies[request.id] = row[:end]
    return replies


def ours(engine: TransformersEngine, tokenizer: Any, asked: list[Request]) -> dict[str, list[int]]:
    """The engine's replies, as token ids again."""
    replies = {}
    for done in engine.generate(asked, Sampling(max_new_tokens=NEW)):
        ids = tokenizer(done.text, add_special_tokens=False)["input_ids"]
        replies[done.id] = ids + [tokenizer.eos_token_id] * (done.tokens - len(ids))
    return replies


def differences(
    asked: list[Request], theirs: dict[str, list[int]], own: dict[str, list[int]], model: Any, tokenizer: Any
) -> list[float]:
    """For each reply that differs: the reference path's logit margin between the two tokens where they part."""
    margins = []
    for request in asked:
        left, right = theirs[request.id], own[request.id]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (left, right)]
        if texts[0] == texts[1]:
            continue
        pairs = enumerate(zip(left, right, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(left), len(right)) - 1)
        ids = tokenizer(request.prompt, add_special_tokens=False)["input_ids"] + left[:at]
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        margins.append(abs(float(logits[left[at]] - logits[right[at]])))
    return margins


def floor(dtype: torch.dtype, device: torch.device | None = None) -> dict[str, float]:
    """What this machine can do: GFLOP/s of a large product in the engine's own kernel, GB/s of reading memory."""
    device = device or torch.device("cpu")
    rows, size = (8192, 8192) if device.type == "cuda" else (1024, 1536)
    linear = torch.nn.Linear(size, size, bias=False, dtype=dtype, device=device)
    product = PackedLinear(linear) if device.type == "cpu" and can_pack(dtype) else linear
    x = torch.randn(rows, size, dtype=dtype, device=device)
    big = torch.ones(128 * 1024 * 1024 * (8 if device.type == "cuda" else 1), device=device)
    with torch.inference_mode():
        best_product, best_read = _best(lambda: product(x), device), _best(lambda: big.sum(), device)
    return {"gflops": 2 * rows * size * size / best_product / 1e9, "gbytes": big.nbytes / best_read / 1e9}


def _best(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of 8 calls, after one that is not counted."""
    best = float("inf")
    for call in range(9):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if call:
            best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Measure, print, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="rows that ours decodes at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    asked = prompts(args.rows)
    tokenizer = load_tokenizer(MODEL)
    engine = TransformersSettings(max_batch_size=args.batch).open(MODEL)
    width = {request.id: len(tokenizer(request.prompt, add_special_tokens=False)["input_ids"]) for request in asked}
    list(engine.generate(asked[:2], Sampling(max_new_tokens=8)))  # warm-up

    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    def note(name: str, replies: dict[str, list[int]], seconds: float) -> float:
        tokens = sum(map(len, replies.values()))
        rows.append(
            {"name": name, "rows": len(replies), "tokens": tokens, "seconds": seconds, "rate": tokens / seconds}
        )
        print(
            f"{name:44} {len(replies):4} rows {tokens:6} tokens {seconds:7.1f} s {tokens / seconds:7.1f} tokens/s",
            flush=True,
        )
        return tokens / seconds

    own, seconds = timed(lambda: ours(engine, tokenizer, asked))
    used = "bfloat16" if engine.dtype is torch.bfloat16 else "float32"
    rate_ours = note(f"(c) ours, batch {args.batch}, {used}", own, seconds)
    engine.close()
    few = {name: args.rows // (4 if name == used else 16) for name in ("bfloat16", "float32")}  # one by one: minutes
    rates: dict[str, float] = {}
    for dtype in sorted(few, key=lambda name: name == used):
        model = load_model(MODEL, dtype)  # type: ignore[arg-type]
        part, wide = asked[: few[dtype]], asked[: max(16, 2 * few[dtype])]
        with_generate(model, tokenizer, asked[:1], 1)
        single, seconds = timed(lambda m=model, p=part: with_generate(m, tokenizer, p, 1))
        rates[f"a {dtype}"] = note(f"(a) generate, batch 1, {dtype}", single, seconds)
        padded, seconds = timed(lambda m=model, p=wide: with_generate(m, tokenizer, p, 16))
        rates[f"b {dtype}"] = note(f"(b) generate, padded batches of 16, {dtype}", padded, seconds)
    margins = differences(part, single, own, model, tokenizer)
    peak = floor(engine.dtype, engine.device)
    weights = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    new, old = sum(map(len, own.values())), sum(width.values())
    flops = 2 * (weights - head) * (new + old) + 2 * head * new
    measured = {
        "rows": rows,
        "ratio_a": rate_ours / max(rates["a float32"], rates["a bfloat16"]),
        "ratio_b": rate_ours / max(rates["b float32"], rates["b bfloat16"]),
        "differ": len(margins),
        "of": few[used],
        "dtype": used,
        "largest_margin": max(margins, default=0.0),
        "floor_seconds": flops / peak["gflops"] / 1e9,
        "prompt_tokens": old,
        **peak,
    }
    least = measured["floor_seconds"]
    print(f"ours / (a) {measured['ratio_a']:.1f}   ours / (b) {measured['ratio_b']:.1f}   (the faster dtype of each)")
    print(f"replies that differ from (a) {used}: {len(margins)} of {few[used]}, margins {sorted(margins)[-3:]}")
    print(f"floor: {flops / 1e12:.2f} TFLOP at {peak['gflops']:.0f} GFLOP/s = {least:.0f} s; {peak['gbytes']:.0f} GB/s")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
