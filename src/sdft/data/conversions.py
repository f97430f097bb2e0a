"""Rows as a dataset's authors publish them → rows in the form of the reference's files.

Each is a pure function of one row. Those that give LLaMA-Factory's alpaca columns leave out what a row has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sdft.data.config import Conversion
from sdft.data.files import Row, Rows
from sdft.data.formats import BadRow, Tags, UnusableRow

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
COLUMNS: dict[Conversion, dict[str, str]] = {
    "gsm8k": {"prompt": "question", "response": "answer"},
    "dolly": ALPACA,
    "magicoder": ALPACA,
    "openhermes": ALPACA,
}
"""Which column is which, once a row is converted."""

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"\n#### *(\S+)\s*\Z")


def gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    """`48/2 = <<48/2=24>>24 clips …\\n#### 72` → `48/2 = 24 clips …\\nThe answer is 72.`"""
    answer, found = _FINAL.subn(r"\nThe answer is \1.", _ANNOTATION.sub("", _text(row, "answer")))
    if not found:
        raise UnusableRow("column 'answer' does not end with a line such as '#### 72'")
    return {"question": _text(row, "question"), "answer": answer}


def dolly(row: Mapping[str, Any]) -> dict[str, Any]:
    """`{"instruction": "Which moth …?", "context": "E. brevipennis is …", "response": "The …"}` → input and output."""
    return {
        "instruction": _text(row, "instruction"),
        "input": _text(row, "context") if row.get("context") else "",
        "output": _text(row, "response"),
    }


def magicoder(row: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lang": "python", "problem": "You are given …", "solution": "```python …"}` → instruction and output."""
    return {"instruction": _text(row, "problem"), "output": _text(row, "solution")}


def openhermes(row: Mapping[str, Any]) -> dict[str, Any]:
    """`{"conversations": [{"from": "human", "value": "Every day …"}, {"from": "gpt", "value": "Here's …"}]}`
    → instruction and output, earlier turns as history. Rows that have instruction and output already stay."""
    if "conversations" not in row:
        return {
            "instruction": _text(row, "instruction"),
            "input": row.get("input") or "",
            "output": _text(row, "output"),
        }
    turns = [message for message, _ in Tags().read(row["conversations"], "conversations")]
    system = turns.pop(0).content if turns and turns[0].role == "system" else row.get("system_prompt") or ""
    if not turns or [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise UnusableRow("column 'conversations' does not go user, assistant, user, assistant …")
    texts = [turn.content for turn in turns]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    converted: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    return converted | ({"history": history} if history else {}) | ({"system": system} if system else {})


CONVERSIONS: dict[Conversion, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "gsm8k": gsm8k,
    "dolly": dolly,
    "magicoder": magicoder,
    "openhermes": openhermes,
}


def converted(rows: Rows, name: Conversion) -> Rows:
    """Rows in the reference's form; those that cannot be converted become bad rows."""
    convert = CONVERSIONS[name]
    for item in rows:
        if isinstance(item, BadRow):
            yield item
            continue
        try:
            if not isinstance(item.value, dict):
                raise UnusableRow("the row is not an object of columns")
            yield Row(item.file, item.line, convert(item.value))
        except UnusableRow as error:
            yield BadRow(item.file, item.line, str(error))


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UnusableRow(f"column '{column}' holds no text; is it this dataset's own form?")
    return value
