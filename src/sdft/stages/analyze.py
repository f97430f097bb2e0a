"""Analyze: the gap between the dataset and the model, the shift of its replies, and the size of the weight change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from sdft.analysis.similarity import METRICS, Embedder, TextMetric, missing_packages, text_metrics
from sdft.analysis.weights import by_layer, total, weight_changes
from sdft.console import Console
from sdft.engines import Continuation, OpenAISettings, open_engine
from sdft.errors import ModelError, ScoringError, counted
from sdft.models import trained
from sdft.recipe import Recipe
from sdft.records import Choice, Example, Prediction, ReplyNll, Shift
from sdft.rendering import Prompter, open_prompter
from sdft.rundir import JsonlWriter, RunDir, digest, read_jsonl, seed_for, write_json, write_jsonl
from sdft.stats import Interval, bootstrap_mean, bootstrap_ratio

T = TypeVar("T")
SEED = "seed"
CHUNK = 64
"""Replies measured at once. Chunks do not depend on what is done, so that a resumed run has the same last digits."""


def run_analyze(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """Write `analyze/`: what the recipe asks for and can be measured here. Returns notes about the rest.

    Rows that are there are kept, as long as their texts are the same.
    """
    asked, notes = recipe.analyze, []
    if asked.nll:
        notes += _write_nll(recipe, run, console)
    if asked.similarity is not False and recipe.methods and recipe.evaluate.benchmarks:
        notes += _write_shift(recipe, run, console)
    if asked.weights and recipe.methods:
        notes += _write_weights(recipe, run)
    return notes


def sample(ids: Iterable[str], rows: int | None, *seed: str | int) -> set[str]:
    """At most `rows` of the ids: those with the smallest hashes, so that more rows are the same ones and more."""
    return set(sorted(ids, key=lambda id: seed_for(*seed, id))[:rows])


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(rows)
    while some := list(islice(waiting, CHUNK)):
        yield some


def _estimate(value: float, interval: Interval) -> dict[str, float]:
    return {"value": value, "low": interval[0], "high": interval[1]}


def _mean(values: Sequence[float]) -> dict[str, float]:
    return _estimate(math.fsum(values) / len(values), bootstrap_mean(values))


# How unlikely replies are


def _write_nll(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """`analyze/nll.jsonl` and `nll.json`."""
    path = run / "analyze/nll.jsonl"
    engine = recipe.evaluate.engine
    if isinstance(engine, OpenAISettings):  # it scores text, not turns
        engine = engine.model_copy(update={"endpoint": "completions"})
    try:
        prompter = open_prompter(recipe.prompt, engine, recipe.model)
        items, notes = _replies(recipe, run, prompter)
        notes += _measure_nll(recipe, run, items, console)
    except ModelError as error:
        if not isinstance(engine, OpenAISettings):
            raise
        items, notes = {}, [f"analyze: likelihood not measured: scoring on a server needs the tokenizer: {error}"]
        with JsonlWriter(path):
            pass  # what an earlier call measured stays
    known = {(row.model, row.text): row for row in read_jsonl(path, ReplyNll)}
    rows = [
        known[model, text].model_copy(update={"example_id": example_id, "variant": variant})
        for model in (SEED, *recipe.methods)
        for (example_id, variant), (text, _) in items.items()
        if (model, text) in known
    ]
    write_jsonl(path, rows)
    write_json(run / "analyze/nll.json", _nll_summary(rows))
    return notes


Replies = Mapping[tuple[str, Any], tuple[str, Continuation]]
"""(example id, variant) → (hash of its texts, what is to be scored), in the dataset's order."""


def _replies(recipe: Recipe, run: RunDir, prompter: Prompter) -> tuple[Replies, list[str]]:
    """Both replies of the drawn examples under the plain prompt, each with what ends it, as training sees them."""
    data = run / "data/train.jsonl"
    drawn = sample((e.id for e in read_jsonl(data, Example)), recipe.analyze.rows, recipe.seed, "analyze")
    chosen = {c.example_id: c for c in read_jsonl(run / "select/choices.jsonl", Choice) if c.example_id in drawn}
    items: dict[tuple[str, Any], tuple[str, Continuation]] = {}
    long = 0
    for example in read_jsonl(data, Example):
        if example.id not in drawn:
            continue
        prompt = prompter.renderer.train(example)
        pair = {"original": example.reference, "distilled": chosen[example.id].response}
        if any(not _has_room(prompter, prompt.text + reply + prompt.end) for reply in pair.values()):
            long += 1
            continue
        for variant, reply in pair.items():
            text = digest([prompt.text, reply + prompt.end])
            items[example.id, variant] = (text, Continuation(text, prompt.text, reply + prompt.end))
    return items, [
        f"analyze: {counted(long, 'example')} left out, being longer than the model's context"
    ] if long else []


def _has_room(prompter: Prompter, text: str) -> bool:
    tokenizer: Any = prompter.renderer.tokenizer
    if prompter.context is None or len(text.encode()) < prompter.context:  # a token has at least one byte
        return True
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) < prompter.context


def _measure_nll(recipe: Recipe, run: RunDir, items: Replies, console: Console) -> list[str]:
    """Score what is not there yet under each model. Texts that are both original and distilled are scored once."""
    notes: list[str] = []
    path = run / "analyze/nll.jsonl"
    with JsonlWriter(path) as writer:
        done = {(row.model, row.text) for row in read_jsonl(path, ReplyNll)}
        for model in (SEED, *recipe.methods):
            wanted = {text: (key, item) for key, (text, item) in items.items()}
            left = [some for some in _chunks(wanted) if any((model, text) not in done for text in some)]
            if not left:
                continue
            config = recipe.model if model == SEED else trained(recipe.model, run / f"train/{model}")
            total, first = len(wanted), len(wanted) - sum(map(len, left))
            try:
                with (
                    closing(open_engine(recipe.evaluate.engine, model, config)) as engine,
                    console.task(f"likelihood under {model}", total=total, done=first) as task,
                ):
                    for some in left:
                        for scored in engine.logprobs([wanted[text][1] for text in some]):
                            task.advance(extra=len(scored.tokens))
                            if (model, scored.id) in done:
                                continue
                            example_id, variant = wanted[scored.id][0]
                            nll = -math.fsum(scored.logprobs)
                            writer.write(
                                ReplyNll(
                                    model=model, example_id=example_id, variant=variant, text=scored.id,
                                    tokens=len(scored.tokens), nll=nll,
                                )
                            )  # fmt: skip
            except ScoringError as error:
                notes.append(f"analyze: likelihood under {model} not measured: {error}")
    return notes


def _nll_summary(rows: Sequence[ReplyNll]) -> dict[str, Any]:
    """Means per token and per example of each model and variant, and how they differ, with intervals."""
    by_model: dict[str, dict[str, dict[str, ReplyNll]]] = {}
    for row in rows:
        if row.tokens:
            by_model.setdefault(row.model, {}).setdefault(row.variant, {})[row.example_id] = row
    seen = {row.example_id: row.text for row in rows if row.variant == "original"}
    changed = {row.example_id for row in rows if row.variant == "distilled" and seen.get(row.example_id) != row.text}
    return {
        "examples": len(seen),
        "rewritten": len(changed),
        "replies": [
            {"model": model, "variant": variant, **_likelihood(list(found.values()))}
            for model, variants in by_model.items()
            for variant, found in variants.items()
        ],
        "gaps": {
            model: _mean([_per_token(after) - _per_token(before[key]) for key, after in found.items() if key in before])
            for model, variants in by_model.items()
            if (before := variants.get("original")) and (found := variants.get("distilled")) and before.keys() & found
        },
    }


def _per_token(row: ReplyNll) -> float:
    return row.nll / row.tokens


def _likelihood(rows: Sequence[ReplyNll]) -> dict[str, Any]:
    """Per token: all tokens alike; per example: all replies alike, each by the mean over its tokens."""
    totals, sizes = [row.nll for row in rows], [float(row.tokens) for row in rows]
    per_token = _estimate(math.fsum(totals) / math.fsum(sizes), bootstrap_ratio(totals, sizes))
    per_example = _mean([_per_token(row) for row in rows])
    return {
        "examples": len(rows),
        "tokens": round(math.fsum(sizes)),
        "per_token": per_token,
        "per_example": per_example,
        "perplexity_per_token": {key: _exp(value) for key, value in per_token.items()},
        "perplexity_per_example": {key: _exp(value) for key, value in per_example.items()},
    }


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


# How far replies moved


def _write_shift(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """`analyze/shift.jsonl` and `shift.json`."""
    path = run / "analyze/shift.jsonl"
    pairs = {
        (model, label): _reply_pairs(recipe, run, model, label)
        for model in recipe.methods
        for label in (benchmark.called for benchmark in recipe.evaluate.benchmarks)
    }
    notes = [f"analyze: {metric} of replies not measured: {why}" for metric, why in missing_packages().items()]
    with JsonlWriter(path) as writer:
        done = {(row.model, row.benchmark, row.id) for row in read_jsonl(path, Shift)}
        wanted = [(*key, id, *texts) for key, found in pairs.items() for id, texts in found.items()]
        left = [some for some in _chunks(wanted) if any(row[:3] not in done for row in some)]
        if left:
            embedder: Embedder | None = None
            try:
                embedder = Embedder(recipe.analyze.embedder, recipe.model.device)
            except ModelError as error:
                notes.append(f"analyze: similarity of replies not measured: {error}")
            metrics = text_metrics()
            first = len(wanted) - sum(map(len, left))
            with console.task("likeness to the seed", total=len(wanted), done=first) as task:
                for some in left:
                    for shift in _shifts(some, metrics, embedder):
                        task.advance()
                        if (shift.model, shift.benchmark, shift.id) not in done:
                            writer.write(shift)
    order = {row[:3]: None for row in wanted}
    rows = [row for row in read_jsonl(path, Shift) if (row.model, row.benchmark, row.id) in order]
    found = {(row.model, row.benchmark, row.id): row for row in rows}
    write_jsonl(path, [found[key] for key in order])
    replies = [_shift_summary(key, rows) for key, some in pairs.items() if some]
    write_json(run / "analyze/shift.json", {"replies": replies})
    return notes


def _reply_pairs(recipe: Recipe, run: RunDir, model: str, label: str) -> dict[str, tuple[str, str]]:
    """Row id → (the seed's reply, the tuned model's), for the drawn rows that both replied to."""
    seed, tuned = (
        {p.id: p.predict for p in read_jsonl(run / f"eval/{name}/{label}/predictions.jsonl", Prediction)
         if p.finish != "error"}
        for name in (SEED, model)
    )  # fmt: skip
    drawn = sample(seed.keys() & tuned.keys(), recipe.analyze.rows, recipe.seed, "analyze", label)
    return {id: (reply, tuned[id]) for id, reply in seed.items() if id in drawn}


def _shifts(
    rows: Sequence[tuple[str, str, str, str, str]], metrics: Mapping[str, TextMetric], embedder: Embedder | None
) -> Iterator[Shift]:
    """One row for each (model, benchmark, id, seed's reply, tuned model's reply)."""
    similar = embedder.likeness([(seed, tuned) for *_, seed, tuned in rows]) if embedder else None
    for index, (model, benchmark, id, seed, tuned) in enumerate(rows):
        equal = seed.split() == tuned.split()  # two empty replies too
        values = {} if similar is None else {"similarity": 1.0 if equal else similar[index]}
        values |= {name: 1.0 if equal else metric(seed, tuned) for name, metric in metrics.items()}
        yield Shift(model=model, benchmark=benchmark, id=id, values=values)


def _shift_summary(key: tuple[str, str], rows: Iterable[Shift]) -> dict[str, Any]:
    own = [row.values for row in rows if (row.model, row.benchmark) == key]
    found = Counter(name for values in own for name in values)
    metrics = {name: _mean([values[name] for values in own if name in values]) for name in METRICS if found[name]}
    return {"model": key[0], "benchmark": key[1], "rows": len(own), "metrics": metrics}


# How far the weights moved


def _write_weights(recipe: Recipe, run: RunDir) -> list[str]:
    """`analyze/weights.json`."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for method in recipe.methods:
        try:
            changes = weight_changes(recipe.model, run / f"train/{method}")
        except ModelError as error:
            notes.append(f"analyze: weight change of {method} not measured: {error}")
            continue
        found[method] = {
            **total(changes),
            "layers": by_layer(changes),
            "modules": [{"module": c.module, "norm": c.norm, "base_norm": c.base_norm} for c in changes],
        }
    write_json(run / "analyze/weights.json", {"methods": found})
    return notes
