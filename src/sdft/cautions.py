"""Warnings that save a day: what is not wrong, but likely makes a run's result useless."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sdft.benchmarks import AnyBenchmark, OwnDataset
from sdft.errors import SdftError
from sdft.models import ModelConfig
from sdft.recipe import Recipe
from sdft.records import Example
from sdft.stats import Z, wilson

CHAT_WORDS = re.compile(r"(?i)instruct|chat|[-_]it\b|assistant|hermes|zephyr|vicuna|tulu|dpo|rlhf|sft|distill|think")
BASE_WORDS = re.compile(r"(?i)(^|[-_/])(base|pt|pretrain(ed)?)([-_.]|$)")
BASE_FAMILIES = re.compile(
    r"(?i)(^|/)(meta-)?(llama-?[23]|qwen(1\.5|2|2\.5)-|smollm2?-|gemma-|mistral-7b|mixtral|pythia|gpt2|gpt-neo|opt-|"
    r"bloom-|falcon-|olmo-|phi-[12]|tinyllama)"
)
"""Families in which the plain name is the base model, and the chat model has a word more."""
FEW = 0.2
"""The share of rows with a rewrite under which `sdft` hardly differs from `sft`."""
ENOUGH_ROWS = 10
"""Rows that must be there before their share says anything."""
HINTS: tuple[tuple[str, str], ...] = (
    ("truncated", "raise distill.max_new_tokens"),
    ("prompt_too_long", "the prompts do not fit: see prompt.on_long and prompt.max_prompt_tokens"),
    ("generation_error", "the engine failed: see `error` in distill/rewrites.jsonl"),
    ("leak", "the model talks about the prompt: try another prompt.distill (`sdft list templates`)"),
    ("empty", "the model says nothing: is its chat template the right one? See `sdft render`"),
    ("no_code", "name the form in prompt.distill: the check wants a fence with Python"),
    ("wrong_opening", "the check code wants `Here is …`; prompt.reply_prefix can begin so"),
)
"""What mends a reason for refusal."""
OTHERWISE = (
    "the rewrites come to other answers: raise distill.candidates, show the answer more plainly (prompt.distill: "
    "answer or refer), or take a larger model"
)


def at_start(recipe: Recipe) -> Iterator[str]:
    """What can be told from a recipe and its local files, without torch."""
    if recipe.data and recipe.distill.engine.name != "scripted":
        yield from base_model(recipe.model)
    yield from small_tests(recipe)
    yield from refused_references(recipe)


def base_model(model: ModelConfig) -> Iterator[str]:
    """Why the seed may be no chat model. It is to follow instructions: it writes the rewrites."""
    why = None
    folder = Path(model.name).expanduser()
    if folder.is_dir() and not has_chat_template(folder):
        why = "its tokenizer has no chat template"
    elif BASE_WORDS.search(model.name) or (BASE_FAMILIES.search(model.name) and not CHAT_WORDS.search(model.name)):
        why = "by its name"
    if why:
        yield (
            f"model {model.name} looks like a base model ({why}): self-distillation wants a seed that follows "
            "instructions; take its chat version (-Instruct, -Chat, -it)"
        )


def has_chat_template(folder: Path) -> bool:
    """Whether a model folder's tokenizer has a chat template, found without loading it."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config.get("chat_template"))


def small_tests(recipe: Recipe) -> Iterator[str]:
    """Test sets on which the interval is wider than the gain that is hoped for. Reads those that have no limit."""
    gain = recipe.evaluate.expected_gain
    enough = math.ceil(Z**2 / (4 * gain**2) - Z**2)  # Wilson's interval at one half
    for benchmark in recipe.evaluate.benchmarks if recipe.methods else ():
        rows = _rows(benchmark)
        if rows is None or rows >= enough:
            continue
        low, high = wilson(rows / 2, rows)
        yield (
            f"benchmark '{benchmark.called}' asks {rows} rows: a share is known to "
            f"±{50 * (high - low):.0f} points with so few, and the gain that you hope for is {100 * gain:g} "
            f"(evaluate.expected_gain={gain:g}); ask {enough} or more"
        )


def refused_references(recipe: Recipe) -> Iterator[str]:
    """Test rows of one's own whose reference fails the check that replies are judged by: no reply can be right."""
    for benchmark in recipe.evaluate.benchmarks:
        if not isinstance(benchmark, OwnDataset) or benchmark.unfetched():
            continue
        try:
            rows = benchmark.examples()
        except SdftError:
            continue  # it is said elsewhere that the data is not here
        failing = [(row, verdict) for row in rows if not (verdict := benchmark.rule()(row, row.reference)).ok]
        if failing:
            row, verdict = failing[0]
            yield (
                f"benchmark '{benchmark.called}': the check {benchmark.check.name} refuses the "
                f"reference itself in {len(failing)} of {len(rows)} rows, such as {row.reference[:40]!r} "
                f"({verdict.reason}): another check may suit them better (`sdft list checks`)"
            )


def _rows(benchmark: AnyBenchmark) -> int | None:
    """How many rows a benchmark of the task asks, where its main metric is a share; None for others."""
    main = next(iter(benchmark.metrics().values()))
    if benchmark.ROLE != "task" or main.kind != "rate":
        return None
    if benchmark.unfetched():
        return benchmark.limit
    try:
        return benchmark.limit or len(benchmark.examples())
    except SdftError:
        return None  # it is said elsewhere that its data is not here


def overlaps(recipe: Recipe, train: Iterable[Example]) -> dict[str, int]:
    """Benchmark's label → its rows that ask what a row to train on asks, for those that have any."""
    tests = {}
    for benchmark in recipe.evaluate.benchmarks:
        try:
            tests[benchmark.called] = [_question(example) for example in benchmark.examples()]
        except SdftError:
            continue
    if not tests:
        return {}
    wanted = {question for questions in tests.values() for question in questions}
    known = {question for question in map(_question, train) if question in wanted}
    counts = {label: sum(question in known for question in questions) for label, questions in tests.items()}
    return {label: count for label, count in counts.items() if count}


def _question(example: Example) -> str:
    """What is asked, white space and case aside."""
    return " ".join("\n".join(turn.content for turn in example.messages if turn.role != "system").casefold().split())


def overlap_lines(counts: Mapping[str, int]) -> list[str]:
    """`overlaps` in words."""
    return [
        f"benchmark '{label}' asks what the training data holds, in {count} of its rows: its scores say what was "
        "learnt by heart, too; take other rows with data.split or data.limit"
        for label, count in counts.items()
    ]


def few_rewrites(examples: int, rewritten: int, refused: Mapping[str, int]) -> str | None:
    """Why hardly any rewrite was kept, where that is so. `refused`: reason → rows that kept their original."""
    if examples < ENOUGH_ROWS or rewritten >= FEW * examples:
        return None
    reasons = sorted(refused.items(), key=lambda item: -item[1])
    hints = dict(HINTS)
    advice = dict.fromkeys(hints.get(reason, OTHERWISE) for reason, _ in reasons[:2])
    return (
        f"select: only {rewritten} of {examples} rows have a rewrite, so sdft learns nearly what sft learns. Refused: "
        f"{', '.join(f'{reason} {count}' for reason, count in reasons[:4])}. To mend: {'; '.join(advice)}"
    )
