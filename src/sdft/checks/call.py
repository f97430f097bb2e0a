"""The check `call`, and the half credit for positional arguments."""

from __future__ import annotations

import re
from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

_CALL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*(?:\.[a-zA-Z_][a-zA-Z0-9_]*)*)\((.*)\)")


class Call(Check):
    """`Here it is: get_rates(countryCode='DE', year=2024)` holds the reference `get_rates(countryCode="DE",year=2024)`.

    As in sail-sg/sdft: white space is folded, `'` reads as `"` and `, ` as `,`; then the reference call must occur
    somewhere in the reply, name and arguments to the letter. `call_ast` compares meanings instead.
    """

    name: Literal["call"] = "call"

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `call_differs`, or with `reference_not_a_call`."""
        expected = _parts(example.reference)
        if expected is None:
            return fail("reference_not_a_call", example.reference[:80])
        return PASS if _occurs(expected, _folded(text)) else fail("call_differs")


def positional_score(label: str, predict: str) -> float:
    """1 where `call` passes, 0.5 where only the argument values match by position, else 0.

    The later score of sail-sg/sdft, quirks and all: the arguments are what stands between the first `(` and the
    first `)` of the reply, cut at commas, and a value matches where it occurs in the argument at its place. The
    function's name is not looked at.
    """
    expected, reply = _parts(label), _folded(predict)
    if expected is None:
        return 0.0
    if _occurs(expected, reply):
        return 1.0
    wanted = expected[1].split(",")
    given = reply[reply.find("(") + 1 : reply.find(")")].split(",")
    if len(wanted) != len(given):
        return 0.0
    matches = all("=" in want and want.split("=")[1] in give for want, give in zip(wanted, given, strict=True))
    return 0.5 if matches else 0.0


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip()).replace("'", '"').replace(", ", ",")


def _parts(call: str) -> tuple[str, str] | None:
    """Name and argument text of the call that `call` starts with, or None."""
    match = _CALL.match(_folded(call))
    return (match[1], match[2]) if match else None


def _occurs(call: tuple[str, str], folded: str) -> bool:
    name, arguments = call
    return re.search(rf"\b{re.escape(name)}\({re.escape(arguments)}\)", folded) is not None
