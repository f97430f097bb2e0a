"""Candidates: rewrites found again by example id, and judged.

Distilling asks whether an example needs another one; selecting asks which one to keep.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from types import TracebackType

from sdft.checks import Check, first_failure
from sdft.errors import RunError
from sdft.records import Example, Rewrite, Verdict

PROMPT_TOO_LONG = "prompt_too_long"
"""The `error` of a rewrite that was not generated, because its prompt does not fit; also a verdict's reason."""


def judge(example: Example, rewrite: Rewrite, checks: Sequence[Check], keep_truncated: bool = False) -> Verdict:
    """The verdict on one candidate; both texts are stripped first, as in the reference implementation.

    Beside the checks' own reasons: `generation_error`, `prompt_too_long`, `truncated` and `empty`.
    """
    if rewrite.finish == "error":
        reason = PROMPT_TOO_LONG if rewrite.error == PROMPT_TOO_LONG else "generation_error"
        return Verdict(ok=False, reason=reason, detail=rewrite.error or "")
    if rewrite.finish == "length" and not keep_truncated:
        return Verdict(ok=False, reason="truncated", detail=f"cut after {rewrite.tokens} tokens")
    text, reference = rewrite.text.strip(), example.reference.strip()
    if not text:
        return Verdict(ok=False, reason="empty")
    if reference != example.reference:
        example = example.model_copy(update={"reference": reference})
    return first_failure(checks, example, text)


class RewriteIndex:
    """Rewrites by example id, kept in a temporary file: a million of them take no more memory than ten."""

    def __init__(self, rewrites: Iterable[Rewrite]) -> None:
        self._db = sqlite3.connect("")  # SQLite's name for a private file that goes when the connection is closed
        rows = ((rewrite.example_id, rewrite.candidate, rewrite.model_dump_json()) for rewrite in rewrites)
        try:
            self._db.execute("pragma journal_mode = off")
            self._db.execute("create table rewrites (example_id text, candidate integer, body text)")
            self._db.executemany("insert into rewrites values (?, ?, ?)", rows)
            self._db.execute("create index by_example on rewrites (example_id, candidate)")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise RunError(
                f"index of rewrites: {error}; it is a temporary file about as large as the rewrites: make room, or "
                "set SQLITE_TMPDIR to a folder that has it, and run again"
            ) from None

    def of(self, example_id: str) -> list[Rewrite]:
        """The rewrites of one example, first candidate first."""
        rows = self._db.execute("select body from rewrites where example_id = ? order by candidate", (example_id,))
        return [Rewrite.model_validate_json(body) for (body,) in rows]

    def __enter__(self) -> RewriteIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
