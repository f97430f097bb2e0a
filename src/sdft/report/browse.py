"""The rows that a page lets people browse: each example's rewrites, and the models' replies to each benchmark.

A book is one such table. Its index holds what rows are listed, filtered and sorted by; its pieces hold the texts, some
hundred kilobytes each, and are loaded as they are looked at. A small book stands in the page itself, a large one in
`rows/` beside it: scripts that call `sdftRows`, since a page that is opened from disk may load scripts, but no data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.errors import RunError
from sdft.records import Choice, Example, Prediction, ReplyNll, Verdict
from sdft.report.source import SEED, Run
from sdft.report.text import brief, excerpt
from sdft.report.verdict import display
from sdft.rundir import read_jsonl
from sdft.visible import visible

PIECE = 400_000
"""Characters of a piece, about: some hundred rows, read in a few milliseconds."""
IN_PAGE = 1_500_000
"""Characters of a book that still stands in the page."""
LONGEST = 24_000
"""Characters of one text that are shown; the run folder has the rest."""
PREVIEW = 110

Row = dict[str, Any]
Load = Callable[[str], str]
"""A part's name → its text, as it was given to `Save`."""
Save = Callable[[str, str], None]


@dataclass(slots=True)
class Book:
    """One table to browse."""

    key: str
    """`rewrites`, or a benchmark's label."""
    stem: str
    """What the names of its parts begin with; made by us, never from untrusted text."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Name to a value for each row."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Column to the texts that its numbers stand for."""
    models: list[tuple[str, str]] = field(default_factory=list)
    """(Model, its name) of those that replied."""
    starts: list[int] = field(default_factory=list)
    """The first row of each piece."""
    size: int = 0
    """Characters of index and pieces."""

    @property
    def rows(self) -> int:
        return len(self.columns.get("id", ()))

    @property
    def parts(self) -> list[str]:
        """The names of index and pieces."""
        return [f"{self.stem}-index", *(f"{self.stem}-{piece}" for piece in range(len(self.starts)))]

    @property
    def in_page(self) -> bool:
        return self.size <= IN_PAGE

    def head(self) -> Row:
        """What the page knows before it loads anything."""
        return {
            "key": visible(self.key),
            "stem": self.stem,
            "rows": self.rows,
            "starts": self.starts,
            "names": self.names,
            "models": self.models,
            "inPage": self.in_page,
        }


def dumped(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it closes the element or opens another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def as_script(name: str, text: str) -> str:
    """A part as a script beside the page."""
    return f"sdftRows({dumped(name)},{text});\n"


def write_books(run: Run, save: Save) -> list[Book]:
    """Save the parts of every book; what cannot be read goes into the run's `missing`."""
    books = [_rewrites(run, save)]
    for index, label in enumerate(dict.fromkeys(scores.label for scores in run.scores)):
        books.append(_predictions(run, label, f"replies-{index}", save))
    return [book for book in books if book.rows]


class _Writer:
    """Gathers the rows of a book and saves them piece by piece."""

    def __init__(self, book: Book, save: Save) -> None:
        self.book, self.save = book, save
        self.waiting: list[str] = []
        self.length = self.count = 0

    def add(self, row: Row, **columns: Any) -> None:
        text = dumped(row)
        if self.waiting and self.length + len(text) > PIECE:
            self._flush()
        self.waiting.append(text)
        self.length += len(text)
        self.count += 1
        for name, value in columns.items():
            self.book.columns.setdefault(name, []).append(value)

    def close(self) -> None:
        if self.waiting:
            self._flush()
        self._save("index", dumped(self.book.columns))

    def _flush(self) -> None:
        self._save(str(len(self.book.starts)), f"[{','.join(self.waiting)}]")
        self.book.starts.append(self.count - len(self.waiting))
        self.waiting, self.length = [], 0

    def _save(self, part: str, text: str) -> None:
        self.book.size += len(text)
        self.save(f"{self.book.stem}-{part}", text)

    def code(self, column: str, name: str) -> int:
        """The number that stands for a text in a column; texts are few."""
        names = self.book.names.setdefault(column, [])
        shown = brief(name.replace("_", " "), 60)
        if shown not in names:
            names.append(shown)
        return names.index(shown)


def _told(run: Run, rows: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Rows as far as they can be read; why no further goes into `missing`."""
    try:
        yield from rows()
    except RunError as error:
        run.missing.append(str(error).removeprefix(f"{run.folder}/"))


def _read(run: Run, name: str, record: type[Any]) -> Iterator[Any]:
    path = run.folder / name
    return _told(run, lambda: read_jsonl(path, record) if path.exists() else ())


def _shown(text: str) -> str:
    return excerpt(text, LONGEST).text


def _judged(verdict: Verdict) -> Row:
    return {"ok": verdict.ok, "reason": brief(verdict.reason.replace("_", " "), 60), "detail": brief(verdict.detail)}


# Rewrites


def _rewrites(run: Run, save: Save) -> Book:
    book = Book("rewrites", "rewrites", names={"source": ["rewrite", "original kept"]})
    writer = _Writer(book, save)
    nll = _nll(run)
    questions = _questions(run, "data/train.jsonl")
    for choice in _read(run, "select/choices.jsonl", Choice):
        rewritten = choice.source == "rewrite"
        likelihood = nll.get(choice.example_id, {})
        before = likelihood.get("original")
        after = likelihood.get("distilled", before if not rewritten else None)
        writer.add(
            _rewrite(choice, questions.get(choice.example_id)),
            id=_link(choice.example_id),
            source=0 if rewritten else 1,
            reason=writer.code("reason", choice.verdict.reason),
            candidate=choice.candidate,
            words=len(choice.response.split()),
            before=len(choice.original.split()),
            nll=after,
            nllBefore=before,
            preview=brief(choice.response, PREVIEW),
        )
    writer.close()
    return book


def _rewrite(choice: Choice, question: str | None) -> Row:
    others = [c for c in choice.candidates if choice.source == "original" or c.candidate != choice.candidate]
    return {
        "question": question,
        "original": _shown(choice.original),
        "chosen": _shown(choice.response) if choice.source == "rewrite" else None,
        "candidate": choice.candidate,
        **_judged(choice.verdict),
        "others": [
            {"candidate": c.candidate, "text": _shown(c.text), **_judged(c.verdict)} for c in others
        ],
    }  # fmt: skip


def _questions(run: Run, name: str) -> dict[str, str]:
    """Example id → what was asked."""
    return {example.id: _question(example) for example in _read(run, name, Example)}


def _question(example: Example) -> str:
    """The user's turn; with earlier turns or a system text, all of them, each after its role."""
    if len(example.messages) == 1:
        return _shown(example.instruction)
    return _shown("\n\n".join(f"{message.role}: {message.content}" for message in example.messages))


def _nll(run: Run) -> dict[str, dict[str, float]]:
    """Example id to variant to the seed's mean NLL per token, for the rows that were measured."""
    found: dict[str, dict[str, float]] = {}
    for row in _read(run, "analyze/nll.jsonl", ReplyNll) if run.nll else ():
        if row.model == SEED and row.tokens and math.isfinite(row.nll):
            found.setdefault(row.example_id, {})[row.variant] = round(row.nll / row.tokens, 4)
    return found


# Predictions


def _link(name: str) -> str:
    """A row's id as the page shows and links it: one line, and still its own where it had to be changed."""
    shown = brief(name, 64)
    return shown if shown == name else f"{shown} {hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _predictions(run: Run, label: str, stem: str, save: Save) -> Book:
    models = [model for model in (SEED, *run.methods) if any((s.model, s.label) == (model, label) for s in run.scores)]
    folders = {scores.model: scores for scores in run.scores if scores.label == label}
    replies: dict[str, dict[str, Prediction]] = {}
    for model in models:
        where = f"eval/{folders[model].model}/{label}/predictions.jsonl"
        for prediction in _read(run, where, Prediction) if _plain(label) else ():
            replies.setdefault(prediction.id, {})[model] = prediction
    questions = _questions(run, f"eval/{SEED}/{label}/examples.jsonl") if replies else {}
    book = Book(label, stem, models=[(visible(model), visible(display(model))) for model in models])
    writer = _Writer(book, save)
    for key, said in replies.items():
        first = next(iter(said.values()))
        question = questions.get(key)
        columns: dict[str, Any] = {}
        for index, model in enumerate(models):
            reply = said.get(model)
            columns[f"ok{index}"] = None if reply is None else int(reply.verdict.ok)
            columns[f"reason{index}"] = None if reply is None else writer.code("reason", reply.verdict.reason)
            columns[f"words{index}"] = None if reply is None else len(reply.predict.split())
        writer.add(
            {
                "question": question,
                "reference": _shown(first.label),
                "replies": [_reply(said.get(model)) for model in models],
            },
            id=_link(key),
            group=None if first.group is None else writer.code("group", first.group),
            preview=brief(question or first.predict, PREVIEW),
            **columns,
        )
    writer.close()
    return book


def _plain(label: str) -> bool:
    """Whether a label can name a folder of the run, and nothing outside it."""
    return Path(label).name == label and label not in ("", ".", "..") and "\0" not in label


def _reply(prediction: Prediction | None) -> Row | None:
    if prediction is None:
        return None
    values = {brief(name, 40): value for name, value in prediction.values.items() if math.isfinite(value)}
    return {
        "text": _shown(prediction.predict),
        "finish": prediction.finish,
        "tokens": prediction.tokens,
        "values": values,
        **_judged(prediction.verdict),
    }
