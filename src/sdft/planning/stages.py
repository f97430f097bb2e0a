"""What each stage will do: rows, tokens, time and cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from sdft.benchmarks import AnyBenchmark, HarnessBenchmark
from sdft.benchmarks.base import JudgedBenchmark
from sdft.benchmarks.drift import Drift
from sdft.engines import AnyEngine, OpenAISettings, TransformersSettings
from sdft.engines.openai import ServerSettings
from sdft.errors import counted
from sdft.judge import estimate, tokens_of
from sdft.memory import guess_device
from sdft.planning.lines import Line, about, money
from sdft.planning.sample import SAMPLE, Counter, Sample, inner
from sdft.planning.speed import Speed, pace, per_second, training_rate
from sdft.recipe import Recipe
from sdft.rendering import Prompter, open_prompter

NO_PRICE = "; what that costs needs prompt_price and completion_price"


def distilling(recipe: Recipe, sample: Sample, speed: Speed | None) -> Iterator[Line]:
    """The first rewrite of each row; how many rows get further candidates is not known before."""
    config, engine = recipe.distill, recipe.distill.engine
    prompt_tokens, tokens = round(sample.rows * sample.distill_prompt), round(sample.rows * sample.rewrite)
    most = sample.rows * config.max_new_tokens
    like = f"the {sample.tried} tried ones" if sample.tried else "the originals"
    text = f"{prompt_tokens:,} prompt tokens and about {tokens:,} new ones, if rewrites are as long as {like}"
    seconds = _seconds(engine, recipe, speed, prompt_tokens - sample.rows * sample.distill_shared, tokens)
    text += f" (at most {most:,}){about(seconds)}"
    if config.candidates > 1:
        text += f"; a row whose rewrite fails is tried again, up to {config.candidates} times in all"
    yield Line("distill", text, seconds, loads=_loads(seconds, 1))
    if isinstance(engine, OpenAISettings):
        times = config.candidates
        yield _bill("distill", engine, (prompt_tokens, tokens), (times * prompt_tokens, times * most))


def training(recipe: Recipe, sample: Sample, speed: Speed | None, processes: int) -> Iterator[Line]:
    """Trains a few steps to tell the time."""
    if not recipe.methods:
        return
    config = recipe.train
    rate = training_rate(recipe, sample)
    on_gpus = guess_device(recipe.model.device) == "cuda"
    # Processes on GPUs of their own are supposed not to wait for one another; those on a processor share it.
    seconds_a_token = 1 / (rate * (processes if on_gpus else 1))
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    parts = f"{config.per_device_train_batch_size} × {config.gradient_accumulation_steps}"
    parts += f" × {processes} processes" if processes > 1 else ""
    text = f"{counted(batch, 'row')} a step ({parts}); {per_second(rate)} tokens/s as tried with one process"
    if processes > 1:
        text += (
            f", times {processes} if none waits" if on_gpus else f": {processes} share the processor, and are no faster"
        )
    yield Line("train", text)
    for method in recipe.methods:
        reply = sample.rewrite if method == "sdft" else sample.original
        each = min(sample.train_prompt + reply, config.max_length)
        rows = math.ceil(sample.rows * each / config.max_length) if config.packing else sample.rows
        batches = math.ceil(rows / (config.per_device_train_batch_size * processes))
        steps = math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation_steps))
        tokens = round(sample.rows * each * config.epochs)
        seconds = tokens * seconds_a_token
        packed = f", packed into about {rows:,} rows" if config.packing else ""
        told = f"{method}: about {steps:,} steps, {tokens:,} tokens{packed}{about(seconds)}"
        yield Line("train", told, seconds, loads=1 if speed else 0)


def evaluating(recipe: Recipe, count: Counter, sample: Sample | None, speed: Speed | None) -> Iterator[Line]:
    """Each benchmark, for the seed and all tuned models; then what judges are asked."""
    engine = recipe.evaluate.engine
    models, for_each, each = _models(recipe)
    prompter: Prompter | None = None
    for benchmark in recipe.evaluate.benchmarks:
        rows = len(benchmark.examples())
        told = f"{benchmark.called}: {counted(rows, 'row')}{for_each}"
        if isinstance(benchmark, HarnessBenchmark):
            yield Line("evaluate", f"{told}, measured without replies; time not estimated", None)
            continue
        if not rows:
            yield Line("evaluate", told)
            continue
        loads = 0 if prompter else models
        prompter = prompter or open_prompter(recipe.prompt, engine, recipe.model)
        prompt, shared = _prompt_tokens(benchmark, prompter, count)
        longest = (benchmark.sampling or recipe.evaluate.sampling).max_new_tokens
        # A task's replies are like those of the data; to general prompts a model writes as long as it may.
        likely = min(sample.rewrite, longest) if sample and benchmark.ROLE == "task" else longest
        prompt_tokens, tokens, most = round(rows * prompt), round(rows * likely), rows * longest
        told += f": {prompt_tokens:,} prompt tokens and "
        told += f"about {tokens:,} new ones (at most {most:,})" if tokens < most else f"at most {most:,} new ones"
        seconds = _seconds(engine, recipe, speed, prompt_tokens - rows * shared, tokens)
        told += about(seconds, each)
        whole = None if seconds is None else models * seconds
        if isinstance(benchmark, Drift) and recipe.methods and isinstance(inner(engine), TransformersSettings):
            read = _seconds(engine, recipe, speed, 2 * (prompt_tokens + tokens), 0)
            told += f"; then seed and tuned model read the seed's replies, side by side{about(read, ' for each tuned')}"
            whole = None if whole is None or read is None else whole + len(recipe.methods) * read
            loads += len(recipe.methods)
        yield Line("evaluate", told, whole, loads=_loads(whole, loads))
        if isinstance(engine, OpenAISettings):
            asked = models * prompt_tokens
            yield _bill("evaluate", engine, (asked, models * tokens), (asked, models * most), f"{benchmark.called}: ")
        if isinstance(benchmark, JudgedBenchmark) and benchmark.judge_model:
            yield _judging(benchmark, recipe, models)


def _models(recipe: Recipe) -> tuple[int, str, str]:
    """How many are measured, and the words for that: `` for each of 3 models``, `` each``; none for the seed alone."""
    models = 1 + len(recipe.methods)
    return (models, f" for each of {models} models", " each") if models > 1 else (models, "", "")


def _prompt_tokens(benchmark: AnyBenchmark, prompter: Prompter, count: Counter) -> tuple[float, int]:
    """The mean of a prompt, and what all prompts begin with."""
    template = benchmark.template_for(prompter.renderer.config.style)
    examples = benchmark.examples()
    some = examples[:: max(1, len(examples) // SAMPLE)][:SAMPLE]
    shared = prompter.shared(lambda example: prompter.renderer.infer(example, template))
    return fmean(count(prompter.renderer.infer(example, template).text) for example in some), count(shared)


def _judging(benchmark: JudgedBenchmark, recipe: Recipe, models: int) -> Line:
    judge = benchmark.judge_model
    assert judge is not None
    questions = benchmark.longest_questions(models, recipe.evaluate.sampling)
    cost = judge.cost(*tokens_of(judge, questions))
    text = f"{benchmark.called}: at most {estimate(judge, questions)}{NO_PRICE if cost is None else ''}"
    return Line("judge", text, None, cost=None if cost is None else (cost, cost))


def analyzing(recipe: Recipe, sample: Sample, speed: Speed | None) -> Iterator[Line]:
    """Likelihoods of originals and rewrites under each model, and likeness of replies."""
    asked, engine = recipe.analyze, recipe.evaluate.engine
    models, for_each, each = _models(recipe)
    if asked.nll:
        rows = min(sample.rows, asked.rows or sample.rows)
        tokens = round(rows * (2 * sample.train_prompt + sample.original + sample.rewrite))
        seconds = _seconds(engine, recipe, speed, tokens, 0)
        told = f"likelihood of {rows:,} originals and as many rewrites: {tokens:,} tokens to read{for_each}"
        told += about(seconds, each)
        if isinstance(engine, OpenAISettings):
            told += "; if the server scores given texts"
        whole = None if seconds is None else models * seconds
        yield Line("analyze", told, whole, loads=_loads(whole, models))
        if isinstance(engine, OpenAISettings):
            yield _bill("analyze", engine, (models * tokens, 0), (models * tokens, 0))
    if asked.similarity is not False and recipe.methods and recipe.evaluate.benchmarks:
        sizes = [len(benchmark.examples()) for benchmark in recipe.evaluate.benchmarks]
        pairs = len(recipe.methods) * sum(min(size, asked.rows or size) for size in sizes)
        yield Line(
            "analyze", f"likeness of replies to the seed's: {counted(pairs, 'pair')}, by a small encoder; not counted"
        )


def uncounted(recipe: Recipe) -> Line:
    """The stages that are quick. 10,000 rows: 0.5 s to select, 2 s to compare by one metric."""
    names = "select, compare and report" if recipe.data else "compare and report"
    return Line("rest", f"{names} use no model; up to 10,000 rows they take seconds, not counted here")


def _seconds(
    engine: AnyEngine, recipe: Recipe, speed: Speed | None, prompt_tokens: float, tokens: float
) -> float | None:
    """What an engine takes for so many tokens; None where that is not known."""
    times = pace(engine, recipe.model)
    if times == math.inf:
        return 0.0
    return None if speed is None or isinstance(times, str) else speed.seconds(prompt_tokens, tokens) / times


def _loads(seconds: float | None, times: int) -> int:
    return times if seconds else 0


def _bill(kind: str, server: ServerSettings, likely: tuple[int, int], most: tuple[int, int], label: str = "") -> Line:
    """What a server is asked for, in (prompt tokens, new tokens), and what that costs."""
    text = f"{label}{server.urls[0]} is asked for {server.bill(*likely)}"
    cost, limit = server.cost(*likely), server.cost(*most)
    if cost is None or limit is None:
        return Line(kind, text + NO_PRICE, cost=None)
    return Line(kind, f"{text}, at most {money(limit)}" if limit > cost else text, cost=(cost, limit))
