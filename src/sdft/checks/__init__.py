"""Checks: what a rewrite must pass to replace the original, and how replies are scored.

To add one: a file with a class whose `name` is a Literal, and the class in `AnyCheck`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from sdft.checks.answer import Answer
from sdft.checks.base import PASS, Check
from sdft.checks.call import Call
from sdft.checks.call_ast import CallAst
from sdft.checks.code import Code
from sdft.checks.copies import Copies
from sdft.checks.degenerate import Degenerate
from sdft.checks.leak import Leak
from sdft.checks.length import Length
from sdft.checks.number import Number
from sdft.checks.refusal_keywords import RefusalKeywords
from sdft.records import Example, Verdict

AnyCheck = Annotated[
    Leak | Answer | Number | Call | CallAst | Code | RefusalKeywords | Degenerate | Copies | Length,
    Field(discriminator="name"),
]


def first_failure(checks: Iterable[Check], example: Example, text: str) -> Verdict:
    """The verdict of the first check that refuses `text`.

    Where all pass: the first passing verdict with a reason of its own, such as `identical`, else plain `ok`.
    """
    passed = PASS
    for check in checks:
        verdict = check(example, text)
        if not verdict.ok:
            return verdict
        if passed.reason == PASS.reason:
            passed = verdict
    return passed


__all__ = [
    "PASS",
    "Answer",
    "AnyCheck",
    "Call",
    "CallAst",
    "Check",
    "Code",
    "Copies",
    "Degenerate",
    "Leak",
    "Length",
    "Number",
    "RefusalKeywords",
    "first_failure",
]
