"""The check `code`."""

from __future__ import annotations

from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

FENCE = "```python"
OPENINGS = ("I have", "Here is", "I implemented")


class Code(Check):
    """A reply that opens with `Here is`, `I have` or `I implemented`, and holds a fence with Python.

    The test of sail-sg/sdft for rewrites of code: its form alone, the code is not run.
    """

    name: Literal["code"] = "code"

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `no_code` or `wrong_opening`."""
        text = text.strip()
        if FENCE not in text:
            return fail("no_code", f"no {FENCE} fence")
        return PASS if text.startswith(OPENINGS) else fail("wrong_opening", text[:40])
