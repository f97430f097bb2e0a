"""Evaluate: the seed and each tuned model on every benchmark, and what differs between them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

from sdft import thinking
from sdft.benchmarks import AnyBenchmark, HarnessBenchmark, OwnDataset
from sdft.benchmarks.drift import Drift, divergence
from sdft.candidates import PROMPT_TOO_LONG
from sdft.cautions import overlap_lines, overlaps
from sdft.console import Console
from sdft.data.origin import SOURCES, source_files
from sdft.engines import Continuation, DistributionEngine, Engine, NotedEngine, Request, Sampling, open_engine
from sdft.engines.openai import OpenAIEngine, beyond_needed
from sdft.errors import RunError, counted
from sdft.models import ModelConfig, trained
from sdft.recipe import Recipe
from sdft.records import Comparison, Completion, Example, Prediction, Verdict
from sdft.rendering import Prompter, open_prompter
from sdft.rundir import JsonlWriter, RunDir, read_jsonl, seed_for, write_json, write_jsonl
from sdft.stats import compare, score

Reply = tuple[Example, Completion, str]
"""What a reply answers, the reply, and the thought before it."""
SEED = "seed"
"""The name of the untuned model under `eval/`."""


def evaluate(
    benchmark: AnyBenchmark,
    engine: Engine,
    prompter: Prompter,
    sampling: Sampling,
    *,
    seed: int = 0,
    examples: Iterable[Example] | None = None,
    values: Mapping[str, Mapping[str, float]] | None = None,
) -> Iterator[Prediction]:
    """Yield one judged reply for each row of a benchmark, as they finish.

    `examples` are the rows to ask; None: all of the benchmark's. `values` are further metrics by row id, measured
    elsewhere. Each row's seed is the same for every model. A row whose prompt does not fit, or whose request fails,
    has a verdict that says so and no values: it is left out of the scores, not counted as wrong.
    """
    template = benchmark.template_for(prompter.renderer.config.style)
    flying: dict[str, tuple[Example, bool]] = {}
    keep = prompter.renderer.config.thinking == "keep"
    refused: list[Example] = []

    def requests() -> Iterator[Request]:
        shared = prompter.shared(lambda example: prompter.renderer.infer(example, template))
        for example in benchmark.examples() if examples is None else examples:
            prompt = prompter.infer(example, template, sampling)
            if prompt is None:
                refused.append(example)
                continue
            flying[example.id] = example, thinking.opens(prompt.text)
            yield Request(
                example.id, prompt.text, seed_for(seed, "eval", benchmark.called, example.id), prompt.stop,
                shared, prompt.messages,
            )  # fmt: skip

    def replies() -> Iterator[Reply]:
        for completion in engine.generate(requests(), sampling):
            example, opened = flying.pop(completion.id)
            reply, thought = (completion, "") if keep else thinking.without(completion, opened)
            yield example, reply, thought

    yield from _all_judged(benchmark, replies(), values or {})
    for example in refused:
        none = Completion(id=example.id, text="", finish="error", prompt_tokens=0, tokens=0, error=PROMPT_TOO_LONG)
        yield _judged(benchmark, example, none, "", {})


def _all_judged(
    benchmark: AnyBenchmark,
    replies: Iterable[Reply],
    values: Mapping[str, Mapping[str, float]],
) -> Iterator[Prediction]:
    """Judge replies in the order that they come in; some benchmarks' several at a time, while the engine goes on."""
    jobs = ((benchmark, example, reply, thought, values.get(example.id, {})) for example, reply, thought in replies)
    if not benchmark.PARALLEL:
        yield from (_judged(*job) for job in jobs)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    waiting: deque[Future[Prediction]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_judged, *job))
            while waiting and (waiting[0].done() or len(waiting) > 4 * cores):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _judged(
    benchmark: AnyBenchmark, example: Example, completion: Completion, thought: str, more: Mapping[str, float]
) -> Prediction:
    if completion.finish == "error":
        reason = PROMPT_TOO_LONG if completion.error == PROMPT_TOO_LONG else "generation_error"
        verdict = Verdict(ok=False, reason=reason, detail=completion.error or "")
        values: dict[str, float] = {}
    else:
        verdict, values = benchmark.judge(example, completion.text)
        values = {**values, **more}
    return Prediction(
        id=example.id,
        label=example.reference,
        predict=completion.text,
        finish=completion.finish,
        tokens=completion.tokens,
        verdict=verdict,
        values=values,
        group=benchmark.groups(example),
        thought=thought,
    )


def tuned_model(recipe: Recipe, run: RunDir, model: str) -> ModelConfig:
    """The seed model, or what `train/<method>` holds: an adapter on the seed, or a whole model."""
    return recipe.model if model == SEED else trained(recipe.model, run / f"train/{model}")


def run_evaluate(recipe: Recipe, run: RunDir, model: str, console: Console) -> list[str]:
    """Write `eval/<model>/<benchmark>/` for all benchmarks; replies that are there are kept. Returns notes."""
    config = tuned_model(recipe, run, model)
    notes: list[str] = []
    for benchmark in recipe.evaluate.benchmarks:  # before the engine holds the model's memory
        if isinstance(benchmark, HarnessBenchmark):
            path = run / f"eval/{model}/{benchmark.called}/predictions.jsonl"
            write_jsonl(path, benchmark.measure(config, path.parent, console))
            notes += _write_scores(benchmark, model, None, path, benchmark.examples())
    with ExitStack() as stack:
        engine: Engine | None = None
        for benchmark in recipe.evaluate.benchmarks:
            if isinstance(benchmark, HarnessBenchmark):
                continue
            sampling = benchmark.sampling or recipe.evaluate.sampling
            path = run / f"eval/{model}/{benchmark.called}/predictions.jsonl"
            sources = path.with_name(Path(SOURCES).name)
            if isinstance(benchmark, OwnDataset) and not sources.exists():
                write_jsonl(sources, source_files(benchmark.data))  # before the rows are read: a later change must show
            examples = benchmark.examples()
            with JsonlWriter(path) as writer:
                done = {prediction.id for prediction in read_jsonl(path, Prediction)}
                left = [example for example in examples if example.id not in done]
                if left:
                    if engine is None:
                        prompter = open_prompter(recipe.prompt, recipe.evaluate.engine, recipe.model)
                        engine = stack.enter_context(closing(open_engine(recipe.evaluate.engine, model, config)))
                    values: dict[str, dict[str, float]] = {}
                    if isinstance(benchmark, Drift) and model != SEED:
                        values = _divergences(recipe, run, benchmark, examples, sampling, prompter, engine, console)
                    label = f"{model} on {benchmark.called}"
                    counted = path.with_name("requests.txt")
                    counting = engine.counting(counted) if isinstance(engine, OpenAIEngine) else nullcontext()
                    with counting, console.task(label, total=len(examples), done=len(done)) as task:
                        for prediction in evaluate(
                            benchmark, engine, prompter, sampling, seed=recipe.seed, examples=left, values=values
                        ):
                            writer.write(prediction)
                            task.advance(extra=prediction.tokens)
            notes += _add_further(benchmark, model, path, examples, console)
            notes += _write_scores(benchmark, model, sampling, path, examples)
        if isinstance(engine, NotedEngine):
            notes += [f"{model}, in its last call: {note}" for note in engine.notes()]
        if isinstance(engine, OpenAIEngine) and engine.settings.priced:
            notes.append(f"{model}, in its last call: {engine.settings.bill(engine.prompt_tokens, engine.tokens)}")
    return notes


def _add_further(
    benchmark: AnyBenchmark, model: str, path: Path, examples: Sequence[Example], console: Console
) -> list[str]:
    """Put into the predictions what the benchmark tells of all of them together. Returns notes."""
    predictions = list(read_jsonl(path, Prediction))
    values, notes = benchmark.further(model, examples, predictions, path.parent, console)
    if benchmark.JUDGED:
        write_jsonl(path, (_with_further(p, benchmark.JUDGED, values.get(p.id, {})) for p in predictions))
    return [f"{model} on {benchmark.called}: {note}" for note in notes]


def _with_further(prediction: Prediction, judged: Sequence[str], values: Mapping[str, float]) -> Prediction:
    kept = {name: value for name, value in prediction.values.items() if name not in judged}
    return prediction.model_copy(update={"values": {**kept, **values}})


def _divergences(
    recipe: Recipe,
    run: RunDir,
    drift: Drift,
    examples: Sequence[Example],
    sampling: Sampling,
    prompter: Prompter,
    tuned: Engine,
    console: Console,
) -> dict[str, dict[str, float]]:
    """By row id, how far the tuned model's next-token distributions lie from the seed's along the seed's replies.

    All rows are measured anew after an interruption. Empty where the engine gives no distributions.
    """
    said = {p.id: p.predict for p in read_jsonl(run / f"eval/{SEED}/{drift.called}/predictions.jsonl", Prediction)}
    missing = [example.id for example in examples if example.id not in said]
    if missing:
        raise RunError(
            f"{run.path}: drift needs the seed model's replies, and {len(missing)} are missing; run `sdft eval` "
            "for the whole recipe, so that the seed comes first"
        )
    if not isinstance(tuned, DistributionEngine):  # the seed is not even loaded: two may not fit
        return {}
    with closing(recipe.evaluate.engine.open(recipe.model)) as seed:
        assert isinstance(seed, DistributionEngine)
        template = drift.template_for(prompter.renderer.config.style)
        keep = prompter.renderer.config.thinking == "keep"
        prompts = [(example, prompter.infer(example, template, sampling)) for example in examples]
        items = [  # a seed that said nothing, or failed, gives nothing to measure along
            Continuation(example.id, prompt.text if keep else thinking.ended(prompt.text), said[example.id])
            for example, prompt in prompts
            if prompt and said[example.id]
        ]
        measured = divergence(seed.distributions(items), tuned.distributions(items))
        values: dict[str, dict[str, float]] = {}
        with console.task("drift from the seed", total=len(items)) as task:
            for item, (kl, same_argmax) in zip(items, measured, strict=True):
                values[item.id] = {"kl": kl, "same_argmax": same_argmax}
                task.advance()
    return values


def _write_scores(
    benchmark: AnyBenchmark, model: str, sampling: Sampling | None, path: Path, examples: Sequence[Example]
) -> list[str]:
    """Put the predictions into the dataset's order and write `scores.json` beside them. Returns notes.

    The seed's folder gets `examples.jsonl` too: what was asked, for those who look at the replies. `sampling` is None
    where no reply was generated.
    """
    found = {prediction.id: prediction for prediction in read_jsonl(path, Prediction)}
    replies = [found[example.id] for example in examples]
    write_jsonl(path, replies)
    if model == SEED:
        asked = (example.model_copy(update={"meta": {}}) for example in examples)
        write_jsonl(path.with_name("examples.jsonl"), asked)
    predictions, metrics = benchmark.combine(replies), benchmark.metrics()
    label = benchmark.called
    failed = Counter(p.verdict.reason for p in replies if p.finish == "error")
    cut = sum(p.finish == "length" for p in replies)
    notes = [*benchmark.notes(replies)]
    thoughts = [len(p.thought.split()) for p in replies if p.thought]
    notes += [thinking.note(thoughts, len(replies))] if thoughts else []
    notes += [f"{counted(count, 'row')} left out: {why}" for why, count in sorted(failed.items())]
    notes += beyond_needed(path.with_name("requests.txt"), len(replies) - failed[PROMPT_TOO_LONG])
    if cut and sampling:
        notes.append(f"{cut} of {len(replies)} replies were cut at {sampling.max_new_tokens} tokens")
    unmeasured = [name for name in metrics if not any(name in p.values for p in predictions)]
    if unmeasured and model != SEED and sampling:
        notes.append(f"not measured with this engine: {', '.join(unmeasured)}")
    write_json(
        path.with_name("scores.json"),
        {
            "model": model,
            "benchmark": benchmark.name,
            "label": label,
            "role": benchmark.ROLE,
            "n": len(predictions),
            "sampling": sampling.model_dump() if sampling else {},
            "main": next(iter(metrics)),
            "scores": [s.model_dump() for s in score(model, label, metrics, predictions)],
            "groups": _group_means(predictions),
            "notes": notes,
        },
    )
    return [f"{model} on {label}: {note}" for note in notes]


def _group_means(predictions: Iterable[Prediction]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        for metric, value in prediction.values.items():
            if prediction.group is not None:
                rows[prediction.group][metric].append(value)
    return {
        group: {metric: sum(values) / len(values) for metric, values in metrics.items()}
        for group, metrics in rows.items()
    }


def run_compare(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """Write `eval/comparisons.json`: each tuned model against the seed, and sdft against sft, row by row.

    Returns a note for each benchmark that asks what the training data holds.
    """
    pairs = [(method, SEED) for method in recipe.methods]
    if {"sdft", "sft"} <= set(recipe.methods):
        pairs.append(("sdft", "sft"))
    comparisons: list[Comparison] = []
    for benchmark in recipe.evaluate.benchmarks:
        label = benchmark.called
        for model, baseline in pairs:
            rows, others = (
                benchmark.combine(list(read_jsonl(run / f"eval/{name}/{label}/predictions.jsonl", Prediction)))
                for name in (model, baseline)
            )
            comparisons += compare(model, baseline, label, benchmark.metrics(), rows, others)
    write_json(run / "eval/comparisons.json", [comparison.model_dump() for comparison in comparisons])
    data = run / "data/train.jsonl"
    return overlap_lines(overlaps(recipe, read_jsonl(data, Example))) if recipe.methods and data.is_file() else []
