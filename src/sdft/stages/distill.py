"""Data and distill: the dataset's examples, and the seed model's own rewrites of their replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing

from sdft import thinking
from sdft.candidates import PROMPT_TOO_LONG, RewriteIndex, judge
from sdft.checks import Check
from sdft.console import Console
from sdft.data import BadRow, hub_note, iter_examples
from sdft.data.origin import SOURCES, source_files
from sdft.engines import Engine, NotedEngine, OpenAISettings, Request, Sampling
from sdft.engines.openai import OpenAIEngine, beyond_needed
from sdft.errors import RecipeError, counted
from sdft.recipe import Recipe
from sdft.records import Completion, Example, Rewrite
from sdft.rendering import Prompter, open_prompter
from sdft.rundir import Jsonl, JsonlWriter, RunDir, read_jsonl, seed_for, write_jsonl


class Distillation:
    """Which rewrites are wanted, and which of them are there.

    `examples` is iterated once for each round of candidates, so it must not be a one-shot iterator. Memory holds
    the ids of what is done and the examples in flight, never the whole dataset.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        candidates: int,
        checks: Sequence[Check],
        keep_truncated: bool,
        done: Iterable[Rewrite] = (),
    ) -> None:
        self.examples, self.candidates = examples, candidates
        self.checks, self.keep_truncated = checks, keep_truncated
        self._done: set[tuple[str, int]] = set()
        self._settled: set[str] = set()
        with RewriteIndex(done) as index:
            for example in examples:
                for rewrite in index.of(example.id):
                    self._note(example, rewrite)

    def count(self, candidate: int) -> tuple[int, int]:
        """How many rewrites this round still wants, and how many of it are done."""
        done = sum(number == candidate for _, number in self._done)
        return sum(1 for _ in self._wanting(candidate)), done

    def round(
        self, candidate: int, engine: Engine, prompter: Prompter, sampling: Sampling, seed: int
    ) -> Iterator[Rewrite]:
        """Ask once for every example whose earlier candidates all failed; yield rewrites as they finish."""
        flying: dict[str, tuple[Example, bool]] = {}
        keep = prompter.renderer.config.thinking == "keep"
        refused: list[Example] = []

        def requests() -> Iterator[Request]:
            shared = prompter.shared(prompter.renderer.distill)
            for example in self._wanting(candidate):
                prompt = prompter.distill(example, sampling)
                if prompt is None:
                    refused.append(example)
                    continue
                flying[example.id] = example, thinking.opens(prompt.text)
                own_seed = seed_for(seed, "distill", example.id, candidate)
                yield Request(example.id, prompt.text, own_seed, prompt.stop, shared, prompt.messages)

        def too_long() -> Iterator[Rewrite]:
            while refused:
                none = Completion(
                    id=refused[0].id, text="", finish="error", prompt_tokens=0, tokens=0, error=PROMPT_TOO_LONG
                )
                yield self._note(refused.pop(0), _rewrite(none, candidate, ""))

        for completion in engine.generate(requests(), sampling):
            yield from too_long()
            example, opened = flying.pop(completion.id)
            reply, thought = (completion, "") if keep else thinking.without(completion, opened)
            yield self._note(example, _rewrite(reply, candidate, thought))
        yield from too_long()

    def _wanting(self, candidate: int) -> Iterator[Example]:
        for example in self.examples:
            if example.id not in self._settled and (example.id, candidate) not in self._done:
                yield example

    def _note(self, example: Example, rewrite: Rewrite) -> Rewrite:
        self._done.add((example.id, rewrite.candidate))
        last = rewrite.candidate + 1 >= self.candidates
        if last or rewrite.error == PROMPT_TOO_LONG or judge(example, rewrite, self.checks, self.keep_truncated).ok:
            self._settled.add(example.id)
        return rewrite


def _rewrite(completion: Completion, candidate: int, thought: str) -> Rewrite:
    fields = completion.model_dump(exclude={"id"})
    return Rewrite(example_id=completion.id, candidate=candidate, thought=thought, **fields)


def distill(
    examples: Iterable[Example],
    engine: Engine,
    prompter: Prompter,
    sampling: Sampling,
    *,
    candidates: int = 1,
    checks: Sequence[Check] = (),
    keep_truncated: bool = False,
    seed: int = 0,
    done: Iterable[Rewrite] = (),
) -> Iterator[Rewrite]:
    """Yield the seed model's own rewrite of each example's reply, as they finish.

    A second candidate is only asked for where the first fails `checks`, and so on up to `candidates`. `done` are
    rewrites that are there already; they are not generated again. A prompt that does not fit, or a request that
    fails, is a rewrite with finish "error". Raises PromptError and EngineError.
    """
    work = Distillation(_again(examples), candidates, checks, keep_truncated, done)
    for candidate in range(candidates):
        yield from work.round(candidate, engine, prompter, sampling, seed)


def _again(examples: Iterable[Example]) -> Iterable[Example]:
    """Something that can be iterated more than once."""
    return list(examples) if isinstance(examples, Iterator) else examples


def run_data(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """Write `data/train.jsonl`: the examples as every later stage reads them. Returns notes for the manifest."""
    if recipe.data is None:
        raise RecipeError("data: missing; there is nothing to distil")
    bad: list[BadRow] = []
    write_jsonl(run / SOURCES, source_files(recipe.data))  # before the rows are read: a later change must show
    count = write_jsonl(run / "data/train.jsonl", iter_examples(recipe.data, bad))
    console.say(f"data: {counted(count, 'example')} of {recipe.data.dataset}")
    notes = [f"data: {counted(len(bad), 'bad row')} left out, such as {bad[0]}"] if bad else []
    for note in notes:
        console.warn(note)
    return [*notes, *hub_note(recipe.data)]


def run_distill(recipe: Recipe, run: RunDir, console: Console) -> list[str]:
    """Append to `distill/rewrites.jsonl` what is not there yet. Returns notes for the manifest."""
    examples = Jsonl(run / "data/train.jsonl", Example)
    path = run / "distill/rewrites.jsonl"
    with JsonlWriter(path) as writer, ExitStack() as stack:
        work = Distillation(
            examples,
            recipe.distill.candidates,
            recipe.select.checks,
            recipe.select.keep_truncated,
            done=read_jsonl(path, Rewrite),
        )
        engine: Engine | None = None
        for candidate in range(recipe.distill.candidates):
            left, done = work.count(candidate)
            if not left:
                continue
            if engine is None:
                prompter = open_prompter(recipe.prompt, recipe.distill.engine, recipe.model)
                engine = stack.enter_context(closing(recipe.distill.engine.open(recipe.model)))
                if isinstance(engine, OpenAIEngine):
                    stack.enter_context(engine.counting(run / "distill/requests.txt"))
            label = "distill" if candidate == 0 else f"distill, candidate {candidate + 1}"
            with console.task(label, total=left + done, done=done) as task:
                for rewrite in work.round(candidate, engine, prompter, recipe.distill.sampling, recipe.seed):
                    writer.write(rewrite)
                    task.advance(extra=rewrite.tokens)
    bill = [f"distill: {note}" for note in engine.notes()] if isinstance(engine, NotedEngine) else []
    finishes: Counter[str] = Counter()
    prompt_tokens = tokens = 0
    thoughts: list[int] = []
    for rewrite in read_jsonl(path, Rewrite):
        finishes[rewrite.error or rewrite.finish] += 1
        thoughts += [len(rewrite.thought.split())] if rewrite.thought else []
        prompt_tokens, tokens = prompt_tokens + rewrite.prompt_tokens, tokens + rewrite.tokens
    settings = recipe.distill.engine
    if isinstance(settings, OpenAISettings) and settings.priced:
        bill += [f"distill: {settings.bill(prompt_tokens, tokens)}"]
    asked = finishes.total() - finishes[PROMPT_TOO_LONG]
    bill += [f"distill: {note}" for note in beyond_needed(run / "distill/requests.txt", asked)]
    if thoughts:
        bill.append(f"distill: {thinking.note(thoughts, finishes.total())}")
    return bill + [
        f"distill: {counted(count, 'reply')} {'cut at the token limit' if why == 'length' else 'failed: ' + why}"
        for why, count in sorted(finishes.items())
        if why != "stop"
    ]
