"""What a recipe will take before it is run: rows, tokens, time, memory, disk and, on a paid server, money.

Tokens come from a sample of the rows, time from a short calibration on this machine. All of it is an estimate.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sdft.benchmarks import HarnessBenchmark
from sdft.console import Console, duration
from sdft.data import BadRow, iter_examples
from sdft.engines import Engine, OpenAISettings, Request, Sampling, TransformersSettings, VLLMSettings
from sdft.memory import GIB, MOST_ROWS, USABLE, Shape, bytes_of, free_memory, guess_device, rows_that_fit, shape_of
from sdft.models import load_tokenizer, resolve
from sdft.needs import with_engines
from sdft.prompts import Prompt, Renderer
from sdft.recipe import LoraConfig, Recipe
from sdft.records import Example
from sdft.rendering import Prompter, open_prompter
from sdft.rundir import seed_for
from sdft.training.rows import TrainingPair

SAMPLE = 64
"""Rows that tokens are counted in."""
TRIED = 8
"""Rows that the calibration generates and trains on."""
TRIED_TOKENS = 24
"""New tokens of each."""
CHARS_PER_TOKEN = 4
"""Where no tokenizer is at hand."""
BYTES_A_TOKEN = 5
"""Of text, with what stands around it in a file."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does, in tokens per second."""

    prompt: float
    reply: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """Mean tokens of a row."""

    distill_prompt: float
    train_prompt: float
    reply: float


def plan_recipe(recipe: Recipe) -> Iterator[str]:
    """Yield what the recipe will take, a line each. Loads the model for a short calibration. Raises as a run does."""
    recipe, chosen = with_engines(recipe)
    yield from chosen
    rows, examples = _drawn(recipe)
    if rows:
        yield f"data: {rows:,} examples, of which {len(examples)} are looked at"
    count = _counter(recipe)
    sampled = _sampled(recipe, examples, count) if examples else None
    rates = _calibrated(recipe, examples) if examples else None
    if sampled:
        yield from _distilling(recipe, rows, sampled, rates)
        if recipe.methods:
            yield from _training(recipe, rows, sampled, examples)
    yield from _evaluating(recipe, count, sampled, rates)
    yield from _memory(recipe)
    if sampled:
        yield _disk(recipe, rows, sampled)


def _drawn(recipe: Recipe) -> tuple[int, list[Example]]:
    """How many examples there are, and at most SAMPLE of them, drawn by the recipe's seed."""
    if recipe.data is None:
        return 0, []
    bad: list[BadRow] = []
    kept: list[tuple[int, Example]] = []
    rows = 0
    for example in iter_examples(recipe.data, bad):
        rows += 1
        kept.append((seed_for(recipe.seed, "plan", example.id), example))
        if len(kept) >= 2 * SAMPLE:
            kept = sorted(kept, key=lambda pair: pair[0])[:SAMPLE]
    return rows, [example for _, example in sorted(kept, key=lambda pair: pair[0])[:SAMPLE]]


def _loads(recipe: Recipe) -> bool:
    """Whether the run loads the model here."""
    engines = (recipe.distill.engine, recipe.evaluate.engine)
    return bool(recipe.methods) or any(isinstance(engine, TransformersSettings | VLLMSettings) for engine in engines)


def _counter(recipe: Recipe) -> Callable[[str], int]:
    """Counts a text's tokens: by the model's tokenizer where the run loads it, else by the text's length."""
    if not _loads(recipe):
        return lambda text: math.ceil(len(text) / CHARS_PER_TOKEN)
    tokenizer = load_tokenizer(recipe.model)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _prompter(recipe: Recipe) -> Prompter:
    return open_prompter(recipe.prompt, recipe.distill.engine, recipe.model)


def _sampled(recipe: Recipe, examples: Sequence[Example], count: Callable[[str], int]) -> Sampled:
    renderer = _prompter(recipe).renderer
    plain = Renderer(recipe.prompt, load_tokenizer(recipe.model)) if recipe.methods else renderer
    return Sampled(
        distill_prompt=fmean(count(renderer.distill(example).text) for example in examples),
        train_prompt=fmean(count(plain.train(example).text) for example in examples),
        reply=fmean(count(example.reference) for example in examples),
    )


def _calibrated(recipe: Recipe, examples: Sequence[Example]) -> Rates | None:
    """Rates of the engine `transformers` on a few distillation prompts; None for others, which are not tried."""
    settings = recipe.distill.engine
    if not isinstance(settings, TransformersSettings):
        return None
    prompter = _prompter(recipe)
    sampling = recipe.distill.sampling
    prompts = [prompt for e in examples[:TRIED] if (prompt := prompter.distill(e, sampling))]
    if not prompts:
        return None
    with closing(settings.open(recipe.model)) as engine:
        _timed(engine, prompts[:1], 2)  # kernels are chosen, memory is taken
        first, prompt_tokens, few = _timed(engine, prompts, 1)
        whole, _, many = _timed(engine, prompts, TRIED_TOKENS)
    return Rates(prompt_tokens / first, max(1, many - few) / max(whole - first, 1e-6))


def _timed(engine: Engine, prompts: Sequence[Prompt], tokens: int) -> tuple[float, int, int]:
    """Seconds, prompt tokens and new tokens of one job."""
    requests = [Request(str(n), prompt.text, n) for n, prompt in enumerate(prompts)]
    started = time.perf_counter()
    found = list(engine.generate(requests, Sampling(temperature=1.0, max_new_tokens=tokens)))
    seconds = time.perf_counter() - started
    return seconds, sum(c.prompt_tokens for c in found), sum(c.tokens for c in found)


def _distilling(recipe: Recipe, rows: int, sampled: Sampled, rates: Rates | None) -> Iterator[str]:
    sampling = recipe.distill.sampling
    reply = min(sampled.reply, sampling.max_new_tokens)
    prompt_tokens, tokens = round(rows * sampled.distill_prompt), round(rows * reply)
    more = f", up to {recipe.distill.candidates} times as many" if recipe.distill.candidates > 1 else ""
    yield (
        f"distill: {prompt_tokens:,} prompt tokens and about {tokens:,} new ones{more}, if rewrites are as long as the "
        f"originals; at most {rows * sampling.max_new_tokens:,}{_took(prompt_tokens, tokens, rates)}"
    )
    settings = recipe.distill.engine
    if isinstance(settings, OpenAISettings):
        yield f"distill, on {settings.urls[0]}: {_bill(settings, prompt_tokens, tokens)}"


def _took(prompt_tokens: float, tokens: float, rates: Rates | None, each: str = "") -> str:
    if rates is None:
        return ""
    seconds = prompt_tokens / rates.prompt + tokens / rates.reply
    return f"; about {duration(seconds)}{each} at {rates.prompt:,.0f} and {rates.reply:,.0f} tokens/s with {TRIED} rows"


def _bill(settings: OpenAISettings, prompt_tokens: int, tokens: int) -> str:
    price = "" if settings.priced else "; its cost needs prompt_price and completion_price"
    return f"{settings.bill(prompt_tokens, tokens)}{price}"


def _training(recipe: Recipe, rows: int, sampled: Sampled, examples: Sequence[Example]) -> Iterator[str]:
    from sdft.stages.train import train_model

    config, renderer = recipe.train, Renderer(recipe.prompt, load_tokenizer(recipe.model))
    each = min(sampled.train_prompt + sampled.reply, config.max_length)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps, tokens = math.ceil(rows / batch * config.epochs), round(rows * each * config.epochs)
    pairs = []
    for example in examples[: max(TRIED, batch)]:
        prompt = renderer.train(example)
        pairs.append(TrainingPair(example.id, prompt.text, example.reference, prompt.end))
    once = config.model_copy(update={"epochs": 1.0, "report_to": (), "on_long": "truncate"})
    with tempfile.TemporaryDirectory() as folder:
        tried = train_model(
            pairs, recipe.model, once, Path(folder) / "plan", seed=recipe.seed, console=Console(quiet=True)
        )
    took = duration(tokens / tried.tokens_per_second)
    yield (
        f"train: {steps:,} steps and {tokens:,} tokens for each of {', '.join(recipe.methods)}; about {took} each "
        f"at {tried.tokens_per_second:,.0f} tokens/s ({len(pairs)} rows, the first step's start-up included)"
    )


def _evaluating(
    recipe: Recipe, count: Callable[[str], int], sampled: Sampled | None, rates: Rates | None
) -> Iterator[str]:
    models = 1 + len(recipe.methods)
    if not recipe.evaluate.benchmarks:
        return
    prompter = open_prompter(recipe.prompt, recipe.evaluate.engine, recipe.model)
    for benchmark in recipe.evaluate.benchmarks:
        label, examples = benchmark.called, benchmark.examples()
        if isinstance(benchmark, HarnessBenchmark) or not examples:
            yield f"evaluate: {label}: {len(examples):,} rows for each of {models} models"
            continue
        sampling = benchmark.sampling or recipe.evaluate.sampling
        template = benchmark.template_for(prompter.renderer.config.style)
        some = examples[:: max(1, len(examples) // SAMPLE)][:SAMPLE]
        each = fmean(count(prompter.renderer.infer(example, template).text) for example in some)
        prompt_tokens = round(len(examples) * each)
        # A task's replies are like those of the data; to general prompts a model writes as long as it may.
        likely = sampled.reply if sampled and benchmark.ROLE == "task" else math.inf
        tokens = round(len(examples) * min(likely, sampling.max_new_tokens))
        same = isinstance(recipe.evaluate.engine, TransformersSettings)
        yield (
            f"evaluate: {label}: {len(examples):,} rows for each of {models} models: {prompt_tokens:,} prompt tokens "
            f"and about {tokens:,} new ones; at most {len(examples) * sampling.max_new_tokens:,}"
            f"{_took(prompt_tokens, tokens, rates if same else None, ' each')}"
        )
        if isinstance(recipe.evaluate.engine, OpenAISettings):
            yield f"evaluate: {label}: {_bill(recipe.evaluate.engine, models * prompt_tokens, models * tokens)}"


def _memory(recipe: Recipe) -> Iterator[str]:
    if not _loads(recipe):
        return
    shape, device = shape_of(resolve(recipe.model)), guess_device(recipe.model.device)
    free = free_memory(device)
    if shape is None:
        yield "memory: not known for this architecture"
        return
    weights = shape.weight_bytes(recipe.model.dtype, device)
    needs = {}
    if isinstance(recipe.distill.engine, TransformersSettings):
        room = None if free is None else USABLE * free - weights
        each = weights + _cache(recipe.distill.engine, recipe, shape, room)
        replicas = recipe.distill.engine.replicas
        if isinstance(replicas, int) and replicas > 1 and device == "cpu":  # on GPUs each has a memory of its own
            needs[f"generating, {replicas} replicas"] = each * replicas
        else:
            needs["generating"] = each
    if recipe.methods:
        needs["training"] = _training_bytes(recipe, shape)
    told = ", ".join(f"{what} {_gib(size)}" for what, size in needs.items())
    have = "" if free is None else f"; {device} has {_gib(free)} free"
    warning = (
        ""
        if free is None or max(needs.values(), default=weights) < free
        else ": too little, see max_batch_size and train.lora"
    )
    yield f"memory: weights {_gib(weights)}; with cache, optimizer and activations: {told}{have}{warning}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _cache(engine: TransformersSettings, recipe: Recipe, shape: Shape, room: float | None) -> int:
    """Bytes of keys and values of a full batch of the longest replies, to prompts of a usual length.

    `room`: bytes that are free for them; None where that is not known.
    """
    device = guess_device(recipe.model.device)
    each = shape.cache_bytes(recipe.model.dtype, device)
    rows = engine.max_batch_size
    if rows == "auto":
        rows = MOST_ROWS[device] if room is None else rows_that_fit(room, each, device)
    return rows * (recipe.distill.max_new_tokens + 512) * each


def _training_bytes(recipe: Recipe, shape: Shape) -> int:
    """Weights, gradients, Adam's two moments in float32, and the activations of one batch, roughly."""
    config, device = recipe.train, guess_device(recipe.model.device)
    tokens = config.per_device_train_batch_size * config.max_length
    kept = 2 if config.gradient_checkpointing else 34  # hidden states a layer
    activations = tokens * (shape.layers * shape.hidden * kept * 2 + 2 * 4 * shape.vocabulary)
    if config.lora is None:
        return 16 * shape.parameters + activations
    adapted = _adapter_numbers(config.lora, shape)
    return shape.parameters * bytes_of(recipe.model.dtype, device) + 16 * adapted + activations


def _disk(recipe: Recipe, rows: int, sampled: Sampled) -> str:
    """Texts are kept as data, rewrite, choice (with both) and distilled row."""
    texts = rows * (sampled.train_prompt * 3 + sampled.reply * 7) * BYTES_A_TOKEN
    place = Path(recipe.output_dir).absolute()
    while not place.exists():
        place = place.parent
    weights = 0.0
    if recipe.methods and (shape := shape_of(resolve(recipe.model))):
        trained = shape.parameters if recipe.train.lora is None else _adapter_numbers(recipe.train.lora, shape)
        weights = trained * 4.0 * (len(recipe.methods) + 2 * 3)  # checkpoints: two for a moment, with Adam's moments
    need, free = texts + weights, shutil.disk_usage(place).free
    return f"disk: about {_gib(need)} in {place}, which has {_gib(free)} free{'' if need < free else ': too little'}"


def _adapter_numbers(lora: LoraConfig, shape: Shape) -> int:
    """An upper bound: as if each of a layer's seven projections had an adapter."""
    return 2 * lora.r * shape.hidden * shape.layers * 7
