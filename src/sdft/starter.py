"""A first recipe for a dataset file: what `sdft init` writes, and why."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sdft.checks import Call
from sdft.checks.answer import words_of
from sdft.checks.number import last_integer
from sdft.data import BadRow, DataConfig, iter_examples
from sdft.data.files import is_data_file, read_file
from sdft.data.formats import ID_COLUMNS, Conversation, Flat, Layout, PromptCompletion, choose_layout
from sdft.errors import DataError, ModelError, PromptError, RecipeError
from sdft.models import load_tokenizer
from sdft.prompts import Renderer, TurnsRenderer
from sdft.recipe import Recipe, load_recipe
from sdft.records import Example

LOOKED_AT = 2000
"""Rows that are looked at."""
MOST = 0.9
"""The share of replies that must be of one kind for its check to be proposed."""
TERSE = 3
"""Words: replies with a median of no more are answers without a sentence."""
PROMPT_COLUMNS = ("question", "prompt", "instruction", "query", "problem", "input", "user", "text", "source")
REPLY_COLUMNS = ("answer", "response", "output", "completion", "reply", "solution", "assistant", "target", "label")
ENOUGH = 100
"""Rows of which some can be spared for a test."""
MOST_HELD_OUT = 200
FEW_LABELS = 10
"""So many different short answers, each given `FEW_TIMES` on average, are labels."""
FEW_TIMES = 5
TERSE_NUMBER = re.compile(r"\d\W*$")
COMES_TO = re.compile(
    r"(\b(is|are|was|be|equals|answer|total|result)\b|[=:#≈])[^\w\n]*\d[\d,]*[^\w\n]*$", re.IGNORECASE
)
"""The end of a reply that comes to a whole number: `… so the answer is $1,200.`, `#### 7`, `3 + 4 = 7`."""
OTHERWISE = re.compile(r"[{\[]|(select|insert|update|delete|create|with)\b", re.IGNORECASE)
"""How JSON and SQL begin."""
CONTEXT_COLUMNS = ("context", "input", "passage", "document", "paragraph")
LENGTHS = (512, 1024, 2048, 4096, 8192)
CHARS_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """What all replies of a dataset are like, and what is good for such."""

    name: str
    checks: tuple[str, ...]
    distill: str
    why: str
    """For the recipe's reader."""
    right: str | None = None
    """The check that tells a right reply, as a recipe names it; None: none does."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a dataset."""

    data: dict[str, Any]
    """The recipe's `data:` section."""
    layout: str
    """In words."""
    examples: Sequence[Example]
    bad: Sequence[BadRow]
    kind: Kind
    terse: bool
    left_out: Sequence[str]
    """Columns of text that no example uses."""
    max_length: int
    """Tokens that hold nearly every row, as far as its characters tell."""

    @property
    def held_out(self) -> int:
        """Rows to keep for a test: a fifth, at most 200; none where a check cannot tell a right reply, or of few."""
        return min(len(self.examples) // 5, MOST_HELD_OUT) if self.kind.right and len(self.examples) >= ENOUGH else 0


def only_file(folder: Path) -> str:
    """The one dataset file of a folder. Raises DataError where there is none, or several."""
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and is_data_file(path.name))
    found = [name for name in found if not name.startswith(".")]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"several dataset files are here ({', '.join(found[:8])}); name one: sdft init {found[0]}")
    raise DataError(
        "no dataset file is here; name one: sdft init FILE. It holds a row for each example, such as "
        '{"prompt": "How much is 7 - 9?", "completion": "-2"}. To see sdft at work without data: sdft run demo'
    )


def parse_columns(text: str) -> dict[str, str]:
    """`prompt=question,response=solution` → a column map. Raises DataError."""
    columns = {}
    for part in text.split(","):
        key, equals, column = part.partition("=")
        if not equals or not key.strip() or not column.strip():
            raise DataError(
                f"--columns {text}: write prompt=COLUMN,response=COLUMN, with system= or query= if there are"
            )
        columns[key.strip()] = column.strip()
    return columns


def look(dataset: str, columns: Mapping[str, str] | None = None) -> Look:
    """Read the first rows of a dataset. Raises DataError where they are not examples in any form that is known.

    `columns` says which part of an example stands in which column, as a recipe's `data.columns` does.
    """
    data: dict[str, Any] = {"dataset": dataset}
    layout = "as its registry says"
    left_out: list[str] = []
    if columns:
        data |= {"format": "columns", "columns": dict(columns)}
        layout = ", ".join(f"{part} in column '{column}'" for part, column in columns.items())
    elif is_data_file(dataset) and Path(dataset).is_file():
        first = next((row.value for row in read_file(Path(dataset)) if not isinstance(row, BadRow)), None)
        if not isinstance(first, dict):
            raise DataError(f"{dataset}: no row of it is an object with columns, such as {{prompt: …, completion: …}}")
        guessed, found = _layout(first, dataset)
        layout = _described(found, first)
        used = {value for value in _columns_of(found) if isinstance(value, str)} | set(ID_COLUMNS)
        left_out = [str(name) for name, value in first.items() if isinstance(value, str) and name not in used]
        data |= {"columns": guessed} if guessed else {}
    bad: list[BadRow] = []
    rows = iter_examples(DataConfig(**data, on_bad_rows="skip"), bad)
    examples = list(itertools.islice(rows, LOOKED_AT))
    if bad:
        data["on_bad_rows"] = "skip"
    words = [len(example.reference.split()) for example in examples]
    terse = statistics.median(words) <= TERSE
    lengths = sorted(sum(len(m.content) for m in e.messages) + 2 * len(e.reference) for e in examples)
    tokens = lengths[int(0.99 * (len(lengths) - 1))] / CHARS_PER_TOKEN
    room = next((length for length in LENGTHS if length >= tokens), LENGTHS[-1])
    return Look(data, layout, examples, bad, _kind(examples, terse), terse, left_out, room)


def _layout(first: Mapping[str, Any], where: str) -> tuple[dict[str, str], Layout]:
    """The columns to name, where they are not known by themselves, and how rows are laid out. Raises DataError."""
    try:
        return {}, choose_layout("auto", {}, first, where)
    except DataError:
        names = {str(name).lower(): str(name) for name, value in first.items() if isinstance(value, str | int | float)}
        prompt = next((names[name] for name in PROMPT_COLUMNS if name in names), None)
        reply = next((names[name] for name in REPLY_COLUMNS if name in names), None)
        if prompt is None or reply is None:
            asks = ", ".join(str(name) for name in first)
            raise DataError(
                f"{where}: which columns hold the prompt and the reply? Of {asks}, say: sdft init {where} --columns "
                "prompt=COLUMN,response=COLUMN"
            ) from None
        columns = {"prompt": prompt, "response": reply}
        context = next((names[name] for name in CONTEXT_COLUMNS if name in names and names[name] != prompt), None)
        columns |= {"query": context} if context else {}
        return columns, choose_layout("columns", columns, first, where)


def _columns_of(layout: Any) -> Iterable[Any]:
    """What the fields of a layout say, column names among them."""
    return (getattr(layout, part.name) for part in fields(layout))


def _described(layout: Layout, first: Mapping[str, Any]) -> str:
    match layout:
        case Conversation():
            return f"conversations, in column '{layout.column}'"
        case PromptCompletion():
            return f"prompts in column '{layout.prompt}', replies in '{layout.completion}'"
        case Flat():
            more = f" and '{layout.query}'" if layout.query in first else ""
            return f"prompts in column '{layout.prompt}'{more}, replies in '{layout.response}'"
    return type(layout).__name__


# What the replies look like


def _kind(examples: Sequence[Example], terse: bool) -> Kind:
    def most(is_so: Callable[[Example], bool]) -> bool:
        return sum(map(is_so, examples)) >= MOST * len(examples)

    if most(_is_call):
        why = "the replies are function calls: a rewrite must make the same call"
        return Kind("calls", ("leak", "call_ast"), "refer", why, "call_ast")
    if most(_is_code):
        why = "the replies are code: a rewrite must hold a fence of Python"
        return Kind("code", ("leak", "code"), "refer", why)
    if most(_is_number):
        why = "the replies end on a number: a rewrite must come to the same"
        return Kind("numbers", ("leak", "degenerate", "number"), "answer" if terse else "refer", why, "number")
    if terse:
        answer = _answer(examples)
        why = "the replies are short answers: a rewrite must hold the very words"
        return Kind("short answers", ("leak", "degenerate", answer), "answer", why, answer)
    why = "leak: talks about the prompt; degenerate: repeats itself. Add copies or length where they fit"
    return Kind("text", ("leak", "degenerate"), "using", why)


def _answer(examples: Sequence[Example]) -> str:
    """The check `answer`, with its labels where there are few."""
    labels: dict[tuple[str, ...], str] = {}
    for example in examples:
        labels.setdefault(words_of(example.reference), example.reference.strip())
    if len(labels) > FEW_LABELS or len(labels) < 2 or len(examples) < FEW_TIMES * len(labels):
        return "answer"
    return f"{{name: answer, labels: [{', '.join(_plain(label) for label in sorted(labels.values()))}]}}"


def _is_call(example: Example) -> bool:
    return Call()(example, example.reference).ok and example.reference.strip().endswith(")")


def _is_code(example: Example) -> bool:
    text = example.reference
    return "```python" in text or re.match(r"\s*((def|class|import|from)\b|@\w)", text) is not None


def _is_number(example: Example) -> bool:
    """Whether a reply is a number, or comes to one at its end, and is not something else that ends on one."""
    text = example.reference.strip()
    if last_integer(text) is None or "```" in text or OTHERWISE.match(text):
        return False
    return (TERSE_NUMBER if len(text.split()) <= TERSE else COMES_TO).search(text) is not None


# The recipe


def written(seen: Look, model: str, path: Path) -> str:
    """A commented recipe for what was seen. It passes `sdft check` where the model is there."""
    kind = seen.kind
    data = [f"  {key}: {_plain(value)}" for key, value in seen.data.items()]
    if seen.bad:
        data[-1] += f"   # {len(seen.bad)} rows are no examples, such as {_comment(seen.bad[0])}"
    if seen.left_out:
        data[-1] += f"   # not used: {', '.join(map(_column, seen.left_out))}"
    test = ""
    if seen.held_out:
        data += ["  shuffle: true             # before the split is cut, so that the test below is like the rest"]
        data += [f"  split: train[{seen.held_out}:]       # the first {seen.held_out} are kept for the test"]
        own = {**seen.data, "shuffle": True, "split": f"train[:{seen.held_out}]"}
        config = "\n".join(f"        {key}: {_plain(value)}" for key, value in own.items())
        test = f"""
    # The rows that were kept from training: the share of replies that pass the check.
    - name: dataset
      label: held_out
      check: {kind.right}
      data:
{config}"""
    tokens = 128 if seen.terse else 512
    elsewhere = "ifeval" + {"numbers": ", gsm8k", "code": ", humaneval", "calls": ", bfcl_simple"}.get(kind.name, "")
    return f"""\
# Written by `sdft init`. {len(seen.examples)} rows were looked at; replies: {kind.name};
# {seen.layout}.
#
#     sdft check {path} --data     everything that is wrong with it, and with the data
#     sdft run {path}              the whole pipeline; interrupted, the same command goes on
#
# Every key with its meaning: `sdft recipe-schema`. With every default: `sdft check {path}`.

# A chat model: a hub name, a folder, or a .gguf file. It writes the rewrites, and is fine-tuned on them.
model: {_plain(model)}

data:
{chr(10).join(data)}
  # limit: 100               # the first rows alone, for a try

# How the model is asked to rewrite a reply; `sdft list templates` shows the others.
prompt: {{distill: {kind.distill}}}

# Later candidates are only generated where the earlier ones fail the checks.
distill: {{candidates: 4, temperature: 0.95, top_p: 0.7, top_k: 50, max_new_tokens: {tokens}}}

# {kind.why}.
select: {{checks: [{", ".join(kind.checks)}]}}

train:
  epochs: 2
  learning_rate: 1e-4
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  max_length: {seen.max_length}          # tokens of prompt and reply together
  lora: {{r: 16, alpha: 32, target_modules: all-linear}}

# sft learns the original replies, sdft the rewrites: train both to see what self-distillation is worth.
methods: [sft, sdft]

evaluate:
  sampling: {{max_new_tokens: {tokens}}}
  benchmarks:{test}
    # How far the tuned models have moved from the seed on general prompts. Add what you care about, such as
    # {elsewhere}: `sdft list benchmarks` shows them all. `dataset` asks rows of your own.
    - drift
"""


def _plain(value: Any) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    bare = re.fullmatch(r"[\w./@-]+", text) is not None and yaml.safe_load(text) == text
    return text if bare else json.dumps(text, ensure_ascii=False)


def _column(name: str) -> str:
    """A column's name, fit for a comment."""
    return re.sub(r"\s+", " ", name)[:40]


def _comment(bad: BadRow) -> str:
    return re.sub(r"\s+", " ", f"line {bad.line}: {bad.why}")[:60]


def write(seen: Look, model: str, path: Path) -> Recipe:
    """Write the recipe and read it again. Raises RecipeError where the file is there already, or cannot be written."""
    if path.exists():
        raise RecipeError(f"{path}: is there already; name another file with --out, or delete it")
    text = written(seen, model, path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from None
    return load_recipe(path)


def prompts(recipe: Recipe, example: Example) -> Iterable[tuple[str, str]]:
    """A heading and a text: what the seed is asked to rewrite, and what is trained on, as the model gets them.

    Without the model's tokenizer, or where it has no chat template, the texts stand without one, and it is said.
    """
    renderer: Renderer
    try:
        renderer, form = Renderer(recipe.prompt, load_tokenizer(recipe.model, weights=False)), "as the model gets it"
        asked = renderer.distill(example)
    except (ModelError, PromptError) as error:
        renderer, form = TurnsRenderer(recipe.prompt), f"without a chat template: {error}"
        asked = renderer.distill(example)
    trained = renderer.train(example)
    yield f"to be rewritten ({form})", asked.text
    yield "to train on, with its reply", trained.text + example.reference + trained.end
