"""How fast engines and training are, from a short try on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from sdft.benchmarks import HarnessBenchmark
from sdft.console import Console, Task
from sdft.engines import (
    AnyEngine,
    Engine,
    OpenAISettings,
    RaySettings,
    Request,
    Sampling,
    TransformersSettings,
    VLLMSettings,
)
from sdft.engines.transformers import TransformersEngine
from sdft.errors import counted
from sdft.memory import gpu_count, guess_device
from sdft.models import ModelConfig, load_tokenizer
from sdft.planning.lines import Line
from sdft.planning.sample import SAMPLE, Sample, engines_of, inner
from sdft.prompts import Prompt, Renderer
from sdft.recipe import Recipe
from sdft.rendering import Prompter, open_prompter
from sdft.training.rows import TrainingPair

TRIED = 8
"""Prompts that are tried at least, where there are so many."""
TRIED_TOKENS = 24
"""New tokens of each."""
TRIED_SECONDS = 10.0
"""That reading the tried prompts may take, where more than TRIED are tried."""
TRIED_STEPS = 3
"""Of training; the first, which starts everything up, is not timed."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one engine `transformers` does on this machine."""

    prompt: float
    """Prompt tokens a second."""
    reply: float
    """New tokens a second, all rows together."""
    rows: int
    """Decoded at once when that was measured."""
    written: float
    """Mean tokens of their replies, which were cut at TRIED_TOKENS; 0 where they were no rewrites."""
    load: float
    """Seconds to load the model."""

    def seconds(self, prompt_tokens: float, tokens: float) -> float:
        """To read so many tokens, and to write so many."""
        return prompt_tokens / self.prompt + tokens / self.reply


def pace(engine: AnyEngine, model: ModelConfig) -> float | str:
    """How many times as fast as one engine `transformers` of this machine it is supposed to be, or why that is unknown.

    Replicas on a GPU each, or on other machines, are supposed to be as fast as this one; those that share this
    machine's processor, as fast as one that has all of it.
    """
    if isinstance(engine, OpenAISettings):
        return "how fast a server is shows only when it is asked"
    if isinstance(inner(engine), VLLMSettings):
        return "vLLM takes minutes to start, and its speed is that of hundreds of rows at once, too much to try"
    if not isinstance(inner(engine), TransformersSettings):
        return math.inf  # replies are given, and no model writes them
    on_gpu = guess_device(model.device) == "cuda"
    gpus = max(1, gpu_count())  # a recipe may name the device cuda where none is seen
    if isinstance(engine, TransformersSettings):
        if not on_gpu:
            return 1
        return gpus if engine.replicas == "auto" else min(engine.replicas, gpus)
    assert isinstance(engine, RaySettings)
    each = engine.gpus(model, on_gpu)
    if bool(each) != on_gpu:
        there, here = ("GPUs", "a processor") if each else ("processors", "a GPU")
        return f"its replicas work on {there}, and this machine would try the model on {here}"
    if engine.address is not None:
        return engine.replicas
    return min(engine.replicas, gpus / each) if on_gpu else 1


def calibrate(recipe: Recipe, sample: Sample | None) -> Speed | None:
    """The speed of the first engine of the recipe that can be tried here; None where there is none."""
    for section, engine in engines_of(recipe).items():
        settings = inner(engine)
        if not isinstance(settings, TransformersSettings) or isinstance(pace(engine, recipe.model), str):
            continue
        prompter = open_prompter(recipe.prompt, engine, recipe.model)
        if section == "distill" and sample:
            found = [prompter.distill(example, recipe.distill.sampling) for example in sample.examples]
        else:
            found = list(_asked(recipe, prompter))
            found = found or [prompter.renderer.train(example) for example in (sample.examples if sample else ())]
        prompts = [prompt for prompt in found if prompt]
        if prompts:
            speed = _tried(settings, recipe.model, prompts, recipe.distill.sampling)
            return speed if section == "distill" else replace(speed, written=0.0)
    return None


def _asked(recipe: Recipe, prompter: Prompter) -> Iterator[Prompt | None]:
    """Prompts of the first benchmark that has any."""
    for benchmark in recipe.evaluate.benchmarks:
        if isinstance(benchmark, HarnessBenchmark):
            continue
        template = benchmark.template_for(prompter.renderer.config.style)
        for example in benchmark.examples()[:SAMPLE]:
            yield prompter.infer(example, template, benchmark.sampling or recipe.evaluate.sampling)
        return


def _tried(settings: TransformersSettings, model: ModelConfig, prompts: Sequence[Prompt], sampling: Sampling) -> Speed:
    load_tokenizer(model)  # imports, and the conversion of a GGUF file, happen once and are not to be counted
    started = time.perf_counter()
    with closing(TransformersEngine(settings.model_copy(update={"replicas": 1}), model)) as engine:
        load = time.perf_counter() - started
        _timed(engine, prompts[:1], sampling, 2)  # kernels are chosen, memory is taken
        few = prompts[:TRIED]
        first, prompt_tokens, begun = _timed(engine, few, sampling, 1)
        rows = min(engine.rows_at_once, int(len(few) * TRIED_SECONDS / first))
        if rows > len(few):
            few = list(islice(cycle(prompts), rows))
            first, prompt_tokens, begun = _timed(engine, few, sampling, 1)
        whole, _, written = _timed(engine, few, sampling, TRIED_TOKENS)
    return Speed(
        prompt=prompt_tokens / first,
        reply=max(1, written - begun) / max(whole - first, 1e-6),
        rows=min(len(few), engine.rows_at_once),
        written=written / len(few),
        load=load,
    )


def _timed(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, tokens: int) -> tuple[float, int, int]:
    """Seconds, prompt tokens and new tokens of one job."""
    requests = [Request(str(n), prompt.text, n, prompt.stop) for n, prompt in enumerate(prompts)]
    cut = sampling.model_copy(update={"max_new_tokens": min(tokens, sampling.max_new_tokens)})
    started = time.perf_counter()
    found = list(engine.generate(requests, cut))
    seconds = time.perf_counter() - started
    return seconds, sum(c.prompt_tokens for c in found), sum(c.tokens for c in found)


def spoken(recipe: Recipe, speed: Speed | None) -> Iterator[Line]:
    """How fast the recipe's engines are supposed to be, or why that is not known."""
    told: dict[str, list[str]] = {}
    for section, engine in engines_of(recipe).items():
        times = pace(engine, recipe.model)
        if isinstance(times, str):
            told.setdefault(f"{engine.name}: not estimated, for {times}", []).append(section)
        elif speed and times != math.inf:
            told.setdefault(f"{engine.name} on {_measured(engine, times, recipe.model, speed)}", []).append(section)
    for text, sections in told.items():
        yield Line("speed", f"{' and '.join(sections)}, {text}")


def _measured(engine: AnyEngine, times: float, model: ModelConfig, speed: Speed) -> str:
    text = (
        f"{guess_device(model.device)}: {per_second(speed.prompt)} prompt and {per_second(speed.reply)} new tokens/s, "
        f"as tried with {counted(speed.rows, 'row')} at once"
    )
    if times != 1:
        return f"{text}, times {times:g} if each replica is as fast as this one"
    if isinstance(engine, TransformersSettings | RaySettings) and engine.replicas not in (1, "auto"):
        return f"{text}; its {engine.replicas} replicas share this machine, and are counted as one"
    return text


def per_second(rate: float) -> str:
    """A rate, short."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def training_rate(recipe: Recipe, sample: Sample) -> float:
    """Tokens a second of one process, from the last of TRIED_STEPS steps; the recipe's method makes no difference."""
    from sdft.stages.train import train_model

    config, renderer = recipe.train, Renderer(recipe.prompt, load_tokenizer(recipe.model))
    pairs = []
    for number, example in enumerate(islice(cycle(sample.examples), TRIED_STEPS * config.per_device_train_batch_size)):
        prompt = renderer.train(example)
        pairs.append(TrainingPair(str(number), prompt.text, example.reference, prompt.end))
    once = config.model_copy(
        update={
            "epochs": 1.0, "gradient_accumulation_steps": 1, "packing": False, "logging_steps": 1, "report_to": (),
            "on_long": "truncate",
        }
    )  # fmt: skip
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        whole = train_model(pairs, recipe.model, once, Path(folder) / "plan", seed=recipe.seed, console=clock)
    (begun, _), *later = clock.steps
    if not later:  # rows without a reply within max_length were left out
        return whole.tokens_per_second
    return sum(tokens for _, tokens in later) / (later[-1][0] - begun)


class _Clock(Console):
    """Says nothing, and notes when each step of a training ended, and its tokens."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.steps: list[tuple[float, float]] = []

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0, unit: str = "rows") -> Iterator[Task]:
        """A task whose advances are noted."""
        yield _Timed(self, label, total, done, unit)


class _Timed(Task):
    console: _Clock

    def advance(self, count: int = 1, extra: float = 0.0, extra_unit: str = "tokens") -> None:
        self.console.steps.append((time.perf_counter(), extra))
