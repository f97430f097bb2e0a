"""Rows of the usual dataset formats → examples, and back.

    alpaca              {"instruction": "Name a dish.", "input": "", "output": "Pho.", "history": [["Hi", "Hello"]]}
    sharegpt            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    messages            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    prompt_completion   {"prompt": "Hi", "completion": "Hello"}, or lists of turns in place of the texts
    columns             any flat row, with a map such as {"prompt": "question", "response": "answer"}

The last reply is the reference; all before it is the prompt. Texts are taken as they stand: nothing is stripped.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sdft.data.config import Format
from sdft.errors import DataError, did_you_mean
from sdft.records import Example, Message, Role
from sdft.rundir import digest

MAX_ROW_CHARS = 10_000_000
"""Longer rows are refused: they are a file read wrongly rather than an example."""
MAX_ROW_DEPTH = 100
"""Deeper nested rows are refused: they could be written to a run folder, but not read again."""

TAGS: Mapping[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Names of the speakers in conversations that bring no `tags` of their own."""

PUBLISHED: tuple[Mapping[str, str], ...] = (
    {"prompt": "instruction", "query": "context", "response": "response"},  # Dolly
    {"prompt": "problem", "response": "solution"},  # Magicoder-OSS-Instruct
)
"""Column maps of well-known flat datasets that `auto` knows."""

ID_COLUMNS = ("id", "task_id")
"""Where a row's own id stands, if it has one and no column is named."""

Columns = Mapping[str, str | None]
"""Part of an example → the column that holds it; None: there is none."""


class UnusableRow(Exception):
    """Why a row is not an example. It becomes a `BadRow`, so it never reaches the user as it is."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not an example."""

    file: str
    line: int
    """1-based line of a .jsonl or .csv file; 1-based row number elsewhere."""
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a layout finds in a row."""

    turns: tuple[Message, ...]
    """All turns, the reply last."""
    reply_column: str | list[str | int]
    """Where the reply stands: a column, or the path to it, such as ["messages", -1, "content"]."""


class Layout(Protocol):
    """How rows are laid out."""

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The columns that may hold the row's own id: `ID_COLUMNS`, one that must, or none."""
        ...

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        """Find the turns. Raises UnusableRow."""
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """Each part of an example in a column of its own; optional columns may be absent from a row."""

    prompt: str = "instruction"
    response: str = "output"
    query: str | None = "input"
    """Joined to the prompt by a newline where it is not empty."""
    history: str | None = "history"
    system: str | None = "system"
    id_columns: tuple[str, ...] = ID_COLUMNS

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        query = _optional_text(row, self.query)
        parts = (_text(row, self.prompt), query)
        turns = [
            *_system(row, self.system),
            *_history(row, self.history),
            Message(role="user", content="\n".join(part for part in parts if part)),
            Message(role="assistant", content=_text(row, self.response)),
        ]
        return Parsed(tuple(turns), self.response)


@dataclass(frozen=True, slots=True)
class Tags:
    """How turns are written: LLaMA-Factory's `tags`. By default both usual ways are understood."""

    role_keys: tuple[str, ...] = ("role", "from")
    content_keys: tuple[str, ...] = ("content", "value")
    roles: Mapping[str, Role] = field(default_factory=lambda: TAGS)

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Tags:
        """Read `tags` of a dataset_info.json entry, whose defaults are sharegpt's."""
        roles: dict[str, Role] = {
            str(info.get("user_tag", "human")): "user",
            str(info.get("assistant_tag", "gpt")): "assistant",
            str(info.get("system_tag", "system")): "system",
        }
        return cls((str(info.get("role_tag", "from")),), (str(info.get("content_tag", "value")),), roles)

    def read(self, value: Any, column: str) -> list[tuple[Message, str]]:
        """Turns with the key that holds each one's text. Raises UnusableRow."""
        if not isinstance(value, list):
            raise UnusableRow(f"column '{column}' is {_kind(value)}, not a list of turns")
        return [self._turn(turn, f"turn {number} of '{column}'") for number, turn in enumerate(value, 1)]

    def _turn(self, turn: Any, where: str) -> tuple[Message, str]:
        if not isinstance(turn, Mapping):
            raise UnusableRow(f"{where} is {_kind(turn)}, not an object")
        role_key = next((key for key in self.role_keys if key in turn), None)
        content_key = next((key for key in self.content_keys if key in turn), None)
        if role_key is None or content_key is None:
            wanted = self.role_keys if role_key is None else self.content_keys
            raise UnusableRow(f"{where} has no '{_or(wanted)}'")
        name, content = turn[role_key], turn[content_key]
        role = self.roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise UnusableRow(f"{where} is by {str(name)[:60]!r}; speakers are {_or(self.roles)}")
        if not isinstance(content, str):
            raise UnusableRow(f"{where}: '{content_key}' is {_kind(content)}, not text")
        return Message(role=role, content=content), content_key


@dataclass(frozen=True, slots=True)
class Conversation:
    """A list of turns in one column."""

    column: str = "messages"
    system: str | None = "system"
    tags: Tags = Tags()
    id_columns: tuple[str, ...] = ID_COLUMNS

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        turns = self.tags.read(_value(row, self.column), self.column)
        messages = [message for message, _ in turns if message.role != "system" or message.content]
        if not any(message.role == "system" for message in messages):
            messages = _system(row, self.system) + messages
        key = turns[-1][1] if turns else ""
        return Parsed(tuple(messages), [self.column, -1, key])


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """TRL's prompt and completion: plain texts, or lists of turns."""

    prompt: str = "prompt"
    completion: str = "completion"
    tags: Tags = Tags()
    id_columns: tuple[str, ...] = ID_COLUMNS

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        prompt, _ = self._part(row, self.prompt, "user")
        completion, path = self._part(row, self.completion, "assistant")
        return Parsed((*prompt, *completion), path)

    def _part(self, row: Mapping[str, Any], column: str, role: Role) -> tuple[list[Message], str | list[str | int]]:
        value = _value(row, column)
        if isinstance(value, str):
            return [Message(role=role, content=value)], column
        turns = self.tags.read(value, column)
        if not turns:
            raise UnusableRow(f"column '{column}' is an empty list")
        return [message for message, _ in turns if message.role != "system" or message.content], [
            column,
            -1,
            turns[-1][1],
        ]


def choose_layout(form: Format, columns: Columns, first: Mapping[str, Any], where: str) -> Layout:
    """The layout that `format` and `columns` of a recipe ask for; `auto` tells from the first row.

    Raises DataError where it cannot be told, naming the columns and what to write.
    """
    if form == "auto" and not columns.keys() - {"id"}:
        known = next((known for known in PUBLISHED if {known["prompt"], known["response"]} <= first.keys()), {})
        columns, form = {**known, **columns}, "columns" if known else _guess(first, where)
    if form == "auto":
        form = "columns"
    if form == "columns":
        _check_map(columns, ("prompt", "query", "response", "history", "system", "id"), where)
        for part in ("prompt", "response"):
            if columns.get(part) is None:
                raise DataError(f"{where}: `columns` names no column for '{part}'; {_example_map(first)}")
        return flat_layout(columns, where)
    if form == "alpaca":
        _check_map(columns, ("prompt", "query", "response", "history", "system", "id"), where)
        own = Flat()
        standard = {part: getattr(own, part) for part in ("prompt", "query", "response", "history", "system")}
        return flat_layout({**standard, **columns}, where)
    if form == "prompt_completion":
        _check_map(columns, ("prompt", "response", "id"), where)
        prompt, completion = columns.get("prompt") or "prompt", columns.get("response") or "completion"
        return PromptCompletion(prompt, completion, id_columns=id_columns(columns))
    _check_map(columns, ("messages", "system", "id"), where)
    usual = ("conversations", "conversation") if form == "sharegpt" else ("messages",)
    column = columns.get("messages") or next((name for name in usual if name in first), usual[0])
    return Conversation(column, columns.get("system", "system"), id_columns=id_columns(columns))


def flat_layout(columns: Columns, where: str) -> Flat:
    """A layout from LLaMA-Factory's `columns`; parts that are not named do not exist. Raises DataError."""
    prompt, response = columns.get("prompt"), columns.get("response")
    if prompt is None or response is None:
        raise DataError(f"{where}: `columns` names no column for '{'response' if prompt else 'prompt'}'")
    return Flat(
        prompt, response, columns.get("query"), columns.get("history"), columns.get("system"), id_columns(columns)
    )


def id_columns(columns: Columns) -> tuple[str, ...]:
    """Where `columns` say that a row's own id stands."""
    if "id" not in columns:
        return ID_COLUMNS
    return () if columns["id"] is None else (columns["id"],)


def _guess(first: Mapping[str, Any], where: str) -> Format:
    if {"instruction", "output"} <= first.keys():
        return "alpaca"
    if {"prompt", "completion"} <= first.keys():
        return "prompt_completion"
    if "messages" in first:
        return "messages"
    if "conversations" in first or "conversation" in first:
        return "sharegpt"
    raise DataError(f"{where}: cannot tell the format from the columns {_listed(first)}; {_example_map(first)}")


def _example_map(first: Mapping[str, Any]) -> str:
    names = [str(name) for name in first]
    close = [difflib.get_close_matches(word, names, n=1, cutoff=0.5) for word in ("question", "answer")]
    prompt, response = (found[0] if found else "COLUMN" for found in close)
    return (
        f"write which column is which, such as data: {{format: columns, columns: {{prompt: {prompt}, "
        f"response: {response}}}}}"
    )


def _check_map(columns: Columns, known: tuple[str, ...], where: str) -> None:
    for part in columns:
        if part not in known:
            raise DataError(f"{where}: `columns` has no part '{part}'{did_you_mean(part, sorted(known))}")


def to_example(layout: Layout, row: Any, system: str | None = None) -> tuple[Example, bool]:
    """Read a row; the second value tells whether the id is the row's own rather than a hash of its content.

    `system` is put in where the row has no system text; it does not count towards the hash. Raises UnusableRow.
    """
    if not isinstance(row, dict):
        raise UnusableRow(f"the row is {_kind(row)}, not an object")
    _check_row(row)
    parsed = layout.parse(row)
    _check_turns(parsed.turns)
    messages, reference = parsed.turns[:-1], parsed.turns[-1].content
    own = _own_id(layout, row)
    identity = own if own is not None else content_id(messages, reference)
    if system and messages[0].role != "system":
        messages = (Message(role="system", content=system), *messages)
    meta = {"row": row, "reply_column": parsed.reply_column}
    return Example(id=identity, messages=messages, reference=reference, meta=meta), own is not None


def content_id(messages: Iterable[Message], reference: str) -> str:
    """16 hex digits that depend on nothing but the texts and roles."""
    return digest([*([message.role, message.content] for message in messages), reference])


def _own_id(layout: Layout, row: Mapping[str, Any]) -> str | None:
    for name in layout.id_columns:
        value = row.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UnusableRow(f"the id in column '{name}' is {_kind(value)}, neither text nor a whole number")
        return str(value)
    if layout.id_columns and layout.id_columns != ID_COLUMNS:
        raise UnusableRow(f"column '{layout.id_columns[0]}' has no id")
    return None


def _check_row(row: dict[str, Any]) -> None:
    """Refuse what could not be written to a run folder and read again."""
    if _deeper(row, MAX_ROW_DEPTH):
        raise UnusableRow(f"the row is nested more than {MAX_ROW_DEPTH} deep")
    text = json.dumps(row, ensure_ascii=False)
    if len(text) > MAX_ROW_CHARS:
        raise UnusableRow(f"the row is over-long: {len(text):,} characters; the limit is {MAX_ROW_CHARS:,}")
    _check_unicode(text)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableRow("the text is not valid Unicode: it holds half of a surrogate pair") from None


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper(item, levels - 1) for item in value.values())
    return isinstance(value, list) and (levels == 0 or any(_deeper(item, levels - 1) for item in value))


def _check_turns(turns: tuple[Message, ...]) -> None:
    if not turns or turns[-1].role != "assistant":
        raise UnusableRow("the last turn is not a reply of the assistant")
    body = turns[1:] if turns[0].role == "system" else turns
    if len(body) < 2:
        raise UnusableRow("there is no user turn before the reply")
    for number, turn in enumerate(body):
        wanted = "user" if number % 2 == 0 else "assistant"
        if turn.role != wanted:
            raise UnusableRow(f"roles do not alternate: '{turn.role}' where '{wanted}' belongs")
    for turn, name in ((body[-2], "prompt"), (body[-1], "reply")):
        if not turn.content.strip():
            raise UnusableRow(f"the {name} is empty")
    if any(not turn.content.strip() for turn in body[:-2]):
        raise UnusableRow("an earlier turn is empty")


def as_row(example: Example, response: str) -> dict[str, Any]:
    """The source row with its reply replaced by `response`; an example without a source row becomes `messages`.

    The row that the example holds is left as it is.
    """
    if "row" not in example.meta:
        return as_messages(example, response)
    column = example.meta["reply_column"]
    path = [column] if isinstance(column, str) else list(column)
    row: dict[str, Any] = _replaced(example.meta["row"], path, response)
    return row


def _replaced(value: Any, path: list[str | int], text: str) -> Any:
    if not path:
        return text
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], text)
    return copy


def as_messages(example: Example, response: str) -> dict[str, Any]:
    """The example as a conversation that ends with `response`."""
    turns = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"messages": [*turns, {"role": "assistant", "content": response}]}


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise UnusableRow(f"no column '{column}' (columns: {_listed(row)})")
    return row[column]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _value(row, column)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)  # an answer or a label that is a number
    if not isinstance(value, str):
        raise UnusableRow(f"column '{column}' is {_kind(value)}, not text")
    return value


def _optional_text(row: Mapping[str, Any], column: str | None) -> str:
    return "" if column is None or row.get(column) is None else _text(row, column)


def _system(row: Mapping[str, Any], column: str | None) -> list[Message]:
    text = _optional_text(row, column)
    return [Message(role="system", content=text)] if text else []


def _history(row: Mapping[str, Any], column: str | None) -> list[Message]:
    pairs = row.get(column) if column is not None else None
    if pairs is None or pairs == "":
        return []
    if isinstance(pairs, str) and pairs.lstrip().startswith("["):
        pairs = _parsed(pairs)  # a cell of a .csv, which holds nothing but text
    if not isinstance(pairs, list):
        raise UnusableRow(f"column '{column}' is {_kind(pairs)}, not a list of [prompt, reply]")
    turns: list[Message] = []
    for number, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UnusableRow(f"item {number} of '{column}' is not [prompt, reply]")
        _check_unicode("".join(pair))
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns


def _parsed(text: str) -> Any:
    """What a text says as JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a truth value", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _listed(row: Mapping[str, Any]) -> str:
    names = ", ".join(str(name) for name in list(row)[:20])
    return names[:300] or "none"
