"""A few rows of the dataset, and how long their prompts and replies are in tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from sdft.data import BadRow, iter_examples
from sdft.engines import AnyEngine, RaySettings
from sdft.models import load_tokenizer
from sdft.needs import SECTIONS, engines
from sdft.prompts import Renderer
from sdft.recipe import Recipe
from sdft.records import Example
from sdft.rendering import needs_tokenizer, open_prompter
from sdft.rundir import seed_for

if TYPE_CHECKING:
    from sdft.planning.speed import Speed

SAMPLE = 64
"""Rows that tokens are counted in."""
CHARS_PER_TOKEN = 4
"""Where no tokenizer is at hand."""

Counter = Callable[[str], int]
"""A text's tokens."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of the dataset; tokens are means over the examples looked at, unless they are the longest."""

    rows: int
    """Of the whole dataset."""
    examples: Sequence[Example]
    distill_prompt: float
    distill_shared: int
    """Tokens that every such prompt begins with; the engine `transformers` computes them once."""
    train_prompt: float
    original: float
    """Tokens of the dataset's replies."""
    rewrite: float
    """Tokens that rewrites are supposed to have."""
    longest_prompt: int
    longest_row: int
    """Of training: prompt and reply."""
    tried: int = 0
    """Rewrites that were tried where `rewrite` is their mean; 0 where it is that of the originals."""

    def with_replies_as(self, speed: Speed) -> Sample:
        """Rewrites as long as those that were tried, where they were longer than the originals."""
        if speed.written <= self.original:
            return self
        return replace(self, rewrite=speed.written, tried=speed.rows)


def engines_of(recipe: Recipe) -> dict[str, AnyEngine]:
    """The section of the recipe → the engine that a run opens for it."""
    return {SECTIONS[kind]: engine for kind, engine in engines(recipe).items()}


def inner(engine: AnyEngine) -> AnyEngine:
    """What a replica on Ray runs; any other engine itself."""
    return engine.inner if isinstance(engine, RaySettings) else engine


def token_counter(recipe: Recipe) -> Counter:
    """Counts by the model's tokenizer where the run needs it, else by the text's length."""
    opened = engines_of(recipe).values()
    if not recipe.methods and not any(needs_tokenizer(recipe.prompt, engine) for engine in opened):
        return lambda text: math.ceil(len(text) / CHARS_PER_TOKEN)
    tokenizer = load_tokenizer(recipe.model, weights=any(loads(engine) for engine in opened) or bool(recipe.methods))
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def loads(engine: AnyEngine) -> bool:
    """Whether it holds the model's weights, here or on a cluster."""
    return inner(engine).name in ("transformers", "vllm")


def draw(recipe: Recipe, count: Counter) -> Sample | None:
    """At most SAMPLE rows, drawn by the recipe's seed, and their lengths; None where there is no data."""
    rows, examples = _drawn(recipe)
    if not examples:
        return None
    prompter = open_prompter(recipe.prompt, recipe.distill.engine, recipe.model)
    renderer = prompter.renderer
    plain = Renderer(recipe.prompt, load_tokenizer(recipe.model)) if recipe.methods else renderer
    distill_prompts = [count(renderer.distill(example).text) for example in examples]
    train_prompts = [count(plain.train(example).text) for example in examples]
    originals = [count(example.reference) for example in examples]
    return Sample(
        rows=rows,
        examples=examples,
        distill_prompt=fmean(distill_prompts),
        distill_shared=count(prompter.shared(renderer.distill)),
        train_prompt=fmean(train_prompts),
        original=fmean(originals),
        rewrite=fmean(originals),
        longest_prompt=max(distill_prompts),
        longest_row=max(prompt + reply for prompt, reply in zip(train_prompts, originals, strict=True)),
    )


def _drawn(recipe: Recipe) -> tuple[int, list[Example]]:
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
